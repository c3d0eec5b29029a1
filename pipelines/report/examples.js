// Filters, searches, sorts and steps through the examples. Without it the page shows them all, the worst first.
(() => {
  const PAGE = 25;
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const counts = [...form.querySelectorAll("[data-count]")];
  const worstFirst = [...list.children];
  const scored = worstFirst.filter((example) => example.dataset.change !== "unscored");
  const bestFirst = [...scored].reverse().concat(worstFirst.slice(scored.length));
  let texts = null; // folded text of each example, read when somebody first searches
  let ordered = worstFirst;
  let limit = PAGE;

  const fits = (example, change) =>
    change === "all" || (change === "both-wrong" ? "bothWrong" in example.dataset : example.dataset.change === change);

  /** In any case, width and composition of letters and their marks: what a reader types is found. */
  const folded = (text) =>
    text.normalize("NFKC").toUpperCase().toLowerCase().normalize("NFKC").replaceAll("ς", "σ").replaceAll("i\u0307", "i");

  function searchable(example) {
    const { prompt, reference, base, tuned } = readPair(example);
    return folded([example.querySelector("h3").textContent, prompt, reference, base, tuned].join("\n"));
  }

  function matches(task, words) {
    if (words) texts ??= new Map(worstFirst.map((example) => [example, searchable(example)]));
    return (example) => (!task || example.dataset.task === task) && (!words || texts.get(example).includes(words));
  }

  function sort(order) {
    const wanted = order === "best" ? bestFirst : worstFirst;
    if (wanted !== ordered) list.append(...wanted);
    ordered = wanted;
  }

  function show() {
    const { task, change, order, search } = form.elements;
    sort(order.value);
    const found = ordered.filter(matches(task.value, folded(search.value.trim())));
    for (const count of counts) {
      const number = found.filter((example) => fits(example, count.dataset.count)).length;
      const label = count.closest("label");
      count.textContent = number;
      label.hidden = number === 0 && count.dataset.count !== "all" && !label.control.checked;
    }
    const wanted = found.filter((example) => fits(example, change.value));
    const shown = new Set(wanted.slice(0, limit));
    for (const example of worstFirst) example.hidden = !shown.has(example);
    const left = wanted.length - shown.size;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(left, 4 * PAGE)} more of ${left.toLocaleString("en")}`;
    document.getElementById("none").hidden = wanted.length > 0;
  }

  function showMore() {
    limit += 4 * PAGE;
    show();
  }

  // A link to an example shows it, whatever the filters say.
  function follow() {
    const target = worstFirst.find(({ id }) => "#" + id === location.hash || "#" + encodeURIComponent(id) === location.hash);
    if (!target) return;
    target.hidden = false;
    target.scrollIntoView();
    // The rows around it get their true heights only now that they are near the screen: go there once more.
    requestAnimationFrame(() => requestAnimationFrame(() => target.scrollIntoView()));
  }

  function step(by) {
    const shown = () => ordered.filter((example) => !example.hidden);
    const current = document.activeElement.closest("#list > .pair");
    // With none in hand, go on from what is on the screen.
    let next = current ? shown().indexOf(current) + by : shown().findIndex((one) => one.getBoundingClientRect().top >= 0);
    if (next >= shown().length && !more.hidden) showMore();
    const example = shown()[Math.max(0, next)];
    if (!example) return;
    example.tabIndex = -1;
    example.focus({ preventScroll: true });
    example.scrollIntoView();
  }

  form.addEventListener("input", (event) => {
    if (event.target.id === "differences") return;
    limit = PAGE;
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", showMore);
  window.addEventListener("hashchange", follow);
  document.addEventListener("keydown", (event) => {
    if (isRating() || !isForThePage(event)) return;
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
  });
  show();
  follow();
})();
