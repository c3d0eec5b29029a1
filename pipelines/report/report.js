"use strict";
// Filters, searches and sorts the examples; the page reads well without it.
(() => {
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const worstFirst = [...list.children];
  const texts = new Map(worstFirst.map((example) => [example, example.textContent.toLowerCase()]));
  const show = () => {
    const { task, change, order, search } = form.elements;
    const words = search.value.toLowerCase().trim();
    let shown = 0;
    for (const example of worstFirst) {
      const data = example.dataset;
      const wanted = (!task.value || data.task === task.value)
        && (!change.value || (change.value === "both-wrong" ? data.bothWrong === "yes" : data.change === change.value))
        && (!words || texts.get(example).includes(words));
      example.hidden = !wanted;
      shown += wanted;
    }
    list.append(...(order.value === "best" ? [...worstFirst].reverse() : worstFirst));
    document.getElementById("shown").textContent = `${shown} of ${worstFirst.length} rows`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
})();
