"use strict";
// Filters, searches and sorts the examples. Without it the page shows them all, the worst regressions first.
(() => {
  const PAGE = 25;
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const counts = [...form.querySelectorAll("[data-count]")];
  const worstFirst = [...list.children];
  const scored = worstFirst.filter((example) => example.dataset.change !== "unscored");
  const bestFirst = [...scored].reverse().concat(worstFirst.slice(scored.length));
  let texts = null; // lower-cased text of each example, read when somebody first searches
  let limit = PAGE;

  const fits = (example, change) =>
    change === "all" || (change === "both-wrong" ? "bothWrong" in example.dataset : example.dataset.change === change);

  function matches(task, words) {
    if (words) texts ??= new Map(worstFirst.map((example) => [example, example.textContent.toLowerCase()]));
    return (example) => (!task || example.dataset.task === task) && (!words || texts.get(example).includes(words));
  }

  function show() {
    const { task, change, order, search } = form.elements;
    const ordered = order.value === "best" ? bestFirst : worstFirst;
    const found = ordered.filter(matches(task.value, search.value.trim().toLowerCase()));
    for (const count of counts) {
      const number = found.filter((example) => fits(example, count.dataset.count)).length;
      const label = count.closest("label");
      count.textContent = number;
      label.hidden = number === 0 && count.dataset.count !== "all" && !label.control.checked;
    }
    const wanted = found.filter((example) => fits(example, change.value));
    const shown = new Set(wanted.slice(0, limit));
    for (const example of worstFirst) example.hidden = !shown.has(example);
    list.append(...ordered);
    const left = wanted.length - shown.size;
    more.hidden = left === 0;
    more.textContent = `Show ${left.toLocaleString("en")} more`;
    document.getElementById("none").hidden = wanted.length > 0;
  }

  // A link to an example shows it, whatever the filters say.
  function follow() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (!target || !list.contains(target)) return;
    target.hidden = false;
    target.scrollIntoView();
  }

  form.addEventListener("input", () => {
    limit = PAGE;
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    limit = Infinity;
    show();
  });
  window.addEventListener("hashchange", follow);
  form.hidden = false;
  show();
  follow();
})();
