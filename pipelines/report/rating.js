// Blind rating: one pair of completions at a time, without names. The report's digest seeds the order of the items and
// the sides of the models. The order is the same when the page is opened again, so rating n belongs to item n.
(() => {
  const { run, report } = document.body.dataset;
  const KEY = `alfine ratings ${run} ${report}`;
  const KEYS = { ArrowLeft: "left", ArrowRight: "right", t: "tie", b: "both bad" };
  const CHOICES = [...MODELS, "tie", "both bad"];
  const byId = (name) => document.getElementById(`rate-${name}`);
  const form = byId("form");
  const items = shuffledItems();
  let { rater, ratings } = load();

  /** A generator of random numbers from 0 to 1 (mulberry32). */
  function randomFrom(seed) {
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  function shuffledItems() {
    const random = randomFrom(parseInt(report.slice(0, 8), 16));
    const shuffled = [...document.querySelectorAll("#sample-prompts .pair, #list > .pair")];
    for (let last = shuffled.length - 1; last > 0; last--) {
      const other = Math.floor(random() * (last + 1));
      [shuffled[last], shuffled[other]] = [shuffled[other], shuffled[last]];
    }
    return shuffled.map((pair) => ({ pair, baseIsLeft: random() < 0.5 }));
  }

  /** The keys of an item in the saved ratings: an answer of a test row, or a sample prompt by its index. */
  function itemKeys({ pair }) {
    const { task, row, answer, promptIndex } = pair.dataset;
    if (promptIndex !== undefined) return { task: null, row: null, answer: null, prompt_index: Number(promptIndex) };
    return { task, row: Number(row), answer: answer === undefined ? null : Number(answer), prompt_index: null };
  }

  function load() {
    try {
      const saved = JSON.parse(localStorage.getItem(KEY)) ?? { rater: "", ratings: [] };
      const isValid = (rating, index) =>
        CHOICES.includes(rating.choice) &&
        JSON.stringify({ ...itemKeys(items[index]), choice: rating.choice }) === JSON.stringify(rating);
      if (saved.ratings.length <= items.length && saved.ratings.every(isValid)) return saved;
    } catch {
      // No storage, or not ours: start without ratings.
    }
    return { rater: "", ratings: [] };
  }

  /** Stores the ratings in this browser. If it stores nothing for files, they last as long as the page. */
  function store(key = KEY) {
    try {
      localStorage.setItem(key, JSON.stringify({ rater, ratings }));
    } catch {
      byId("memory").hidden = false;
    }
  }

  function checkStorage() {
    store("alfine");
    try {
      localStorage.removeItem("alfine");
    } catch {
      // store() has shown the warning.
    }
  }

  /** Shows the progress and the possible actions, outside of the rating. */
  function showAbout() {
    const isStarted = ratings.length > 0;
    const isComplete = ratings.length === items.length;
    byId("count").textContent = isStarted
      ? `${ratings.length} of ${items.length} rated.`
      : `${items.length} pairs of answers.`;
    byId("start").textContent = isStarted ? "Continue" : "Start";
    byId("start").hidden = isComplete;
    for (const name of ["result", "save", "discard"]) byId(name).hidden = !isStarted;
    byId("revealed").hidden = true;
  }

  function showItem() {
    const { pair, baseIsLeft } = items[ratings.length];
    const { prompt, reference, base, tuned } = readPair(pair);
    const put = (node, text) => {
      node.textContent = text || "(nothing)";
      node.classList.toggle("empty", !text);
    };
    const identical = base === tuned ? " · both answers are the same" : "";
    byId("progress").textContent = `${ratings.length + 1} of ${items.length}${identical}`;
    put(byId("prompt"), prompt);
    byId("reference").open = false;
    byId("reference").hidden = !pair.querySelector(".reference");
    put(byId("reference").querySelector(".text"), reference);
    put(byId("left"), baseIsLeft ? base : tuned);
    put(byId("right"), baseIsLeft ? tuned : base);
    byId("item").classList.toggle("code", pair.classList.contains("code"));
    byId("undo").disabled = ratings.length === 0;
    window.scrollTo(0, 0);
  }

  function enter() {
    document.body.classList.add("rating");
    byId("about").hidden = true;
    byId("item").hidden = false;
    showItem();
    byId("item").focus();
  }

  function leave() {
    document.body.classList.remove("rating");
    byId("about").hidden = false;
    byId("item").hidden = true;
    showAbout();
    document.getElementById("rate").scrollIntoView();
    (byId("start").hidden ? byId("result") : byId("start")).focus();
  }

  function choose(choice) {
    const item = items[ratings.length];
    const sides = item.baseIsLeft ? MODELS : [...MODELS].reverse();
    const chosen = { left: sides[0], right: sides[1] }[choice] ?? choice;
    ratings.push({ ...itemKeys(item), choice: chosen });
    store();
    if (ratings.length < items.length) return showItem();
    leave();
    reveal();
  }

  function undo() {
    if (ratings.length === 0) return;
    ratings.pop();
    store();
    showItem();
  }

  function reveal() {
    const table = byId("revealed").querySelector("table");
    table.replaceChildren();
    const add = (tag, row, text, scope) => {
      const cell = row.appendChild(document.createElement(tag));
      cell.textContent = text;
      if (scope) cell.scope = scope;
      if (scope !== "row") cell.className = "n";
    };
    const head = table.createTHead().insertRow();
    add("th", head, "You preferred", "row");
    for (const choice of CHOICES) add("th", head, choice, "col");
    const body = table.createTBody();
    const line = (name, among) => {
      const row = body.insertRow();
      add("th", row, name, "row");
      for (const choice of CHOICES) add("td", row, among.filter((rating) => rating.choice === choice).length);
    };
    const tasks = [...new Set(ratings.map(({ task }) => task))];
    const ofTask = (task) => ratings.filter((rating) => rating.task === task);
    if (tasks.length > 1) for (const task of tasks) line(task ?? "sample prompts", ofTask(task));
    line("all", ratings);
    byId("revealed").hidden = false;
  }

  function save() {
    const saved = { format_version: 3, run, report, models: MODELS, rater, ratings };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(saved, null, 2) + "\n"], { type: "application/json" }));
    link.download = `${run}-ratings.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function discard() {
    if (!confirm(`Discard ${ratings.length} ratings?`)) return;
    ratings = [];
    store();
    showAbout();
  }

  form.elements.rater.value = rater;
  form.elements.rater.addEventListener("input", () => {
    rater = form.elements.rater.value.trim();
    store();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (ratings.length < items.length) enter();
  });
  byId("result").addEventListener("click", reveal);
  byId("save").addEventListener("click", save);
  byId("discard").addEventListener("click", discard);
  byId("undo").addEventListener("click", undo);
  byId("stop").addEventListener("click", leave);
  byId("choices").addEventListener("click", (event) => {
    const { choice } = event.target.closest("button")?.dataset ?? {};
    if (choice) choose(choice);
  });
  document.addEventListener("keydown", (event) => {
    if (!isRating() || !isForThePage(event) || event.repeat) return;
    if (event.key === "u") undo();
    else if (event.key === "Escape") leave();
    else if (Object.hasOwn(KEYS, event.key)) {
      event.preventDefault();
      choose(KEYS[event.key]);
    }
  });
  checkStorage();
  showAbout();
})();
