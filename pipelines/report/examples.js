// Filters, searches and sorts the examples, and steps through them. Without it the page shows all, the worst first.
(() => {
  const PAGE = 25;
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const counts = [...form.querySelectorAll("[data-count]")];
  const worstFirst = [...list.children];
  const scored = worstFirst.filter((example) => example.dataset.change !== "unscored");
  const bestFirst = [...scored].reverse().concat(worstFirst.slice(scored.length));
  let texts = null; // searchable text of each example, read at the first search
  let ordered = worstFirst;
  let limit = PAGE;

  const matchesChange = (example, change) =>
    change === "all" || (change === "both-wrong" ? "bothWrong" in example.dataset : example.dataset.change === change);

  /** Folds case, width and composition, so that a search finds what reads the same. */
  const fold = (text) =>
    text
      .normalize("NFKC")
      .toUpperCase()
      .toLowerCase()
      .normalize("NFKC")
      .replaceAll("ς", "σ")
      .replaceAll("i\u0307", "i");

  function searchable(example) {
    const { prompt, reference, base, fewShot, tuned } = readPair(example);
    return fold([example.querySelector("h3").textContent, prompt, reference, base, fewShot, tuned].join("\n"));
  }

  function matcher(task, query) {
    if (query) texts ??= new Map(worstFirst.map((example) => [example, searchable(example)]));
    return (example) => (!task || example.dataset.task === task) && (!query || texts.get(example).includes(query));
  }

  function sort(order) {
    const wanted = order === "best" ? bestFirst : worstFirst;
    if (wanted !== ordered) list.append(...wanted);
    ordered = wanted;
  }

  function show() {
    const { task, change, order, search } = form.elements;
    sort(order.value);
    const matching = ordered.filter(matcher(task.value, fold(search.value.trim())));
    for (const count of counts) {
      const number = matching.filter((example) => matchesChange(example, count.dataset.count)).length;
      const label = count.closest("label");
      count.textContent = number;
      label.hidden = number === 0 && count.dataset.count !== "all" && !label.control.checked;
    }
    const selected = matching.filter((example) => matchesChange(example, change.value));
    const shown = new Set(selected.slice(0, limit));
    for (const example of worstFirst) example.hidden = !shown.has(example);
    const left = selected.length - shown.size;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(left, 4 * PAGE)} more of ${left.toLocaleString("en")}`;
    document.getElementById("none").hidden = selected.length > 0;
  }

  function showMore() {
    limit += 4 * PAGE;
    show();
  }

  // A link to an example shows it, whatever the filters are.
  function follow() {
    const { hash } = location;
    const target = worstFirst.find(({ id }) => "#" + id === hash || "#" + encodeURIComponent(id) === hash);
    if (!target) return;
    target.hidden = false;
    target.scrollIntoView();
    // The examples around it are laid out only now that they are near the screen: scroll again.
    requestAnimationFrame(() => requestAnimationFrame(() => target.scrollIntoView()));
  }

  function step(by) {
    const shown = () => ordered.filter((example) => !example.hidden);
    const current = document.activeElement.closest("#list > .pair");
    // Without a focused example, start from the first one on the screen.
    const isBelowTop = (example) => example.getBoundingClientRect().top >= 0;
    let next = current ? shown().indexOf(current) + by : shown().findIndex(isBelowTop);
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
