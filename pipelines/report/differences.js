// Marks the words in which two completions differ: <del> for the first model, <ins> for the second. The text itself
// does not change, so searching and copying work as before.
(() => {
  const MAX_CELLS = 4e6; // of the table below, about 30 ms; longer pairs are not marked
  const toggle = document.getElementById("differences");
  const pairs = [...document.querySelectorAll("main .pair:has(> .completions > .base)")];
  const marked = new Set();

  let segmenter = null;

  /** The words of a text, each with the space after it. Intl.Segmenter segments every script and keeps letters and
      their marks together. */
  function wordsOf(text) {
    segmenter ??= new Intl.Segmenter("und", { granularity: "word" });
    const words = [];
    for (const { segment } of segmenter.segment(text)) {
      if (words.length && !segment.trim()) words[words.length - 1] += segment;
      else words.push(segment);
    }
    return words;
  }

  /** The indices of the words of each list that are not in their longest common subsequence; null for lists that are
      too long. */
  function unmatched(first, second) {
    let start = 0;
    let firstEnd = first.length;
    let secondEnd = second.length;
    while (start < firstEnd && start < secondEnd && first[start] === second[start]) start++;
    const endsAreEqual = () => first[firstEnd - 1] === second[secondEnd - 1];
    while (firstEnd > start && secondEnd > start && endsAreEqual()) firstEnd--, secondEnd--;
    const rows = firstEnd - start;
    const columns = secondEnd - start;
    if (rows * columns > MAX_CELLS) return null;

    // common[i, j]: length of the longest common subsequence of first[i...] and second[j...].
    const ids = new Map();
    const idOf = (word) => ids.get(word) ?? (ids.set(word, ids.size), ids.size - 1);
    const a = Int32Array.from(first.slice(start, firstEnd), idOf);
    const b = Int32Array.from(second.slice(start, secondEnd), idOf);
    const width = columns + 1;
    const common = new Uint16Array((rows + 1) * width);
    for (let i = rows - 1; i >= 0; i--)
      for (let j = columns - 1; j >= 0; j--) {
        const at = i * width + j;
        common[at] = a[i] === b[j] ? common[at + width + 1] + 1 : Math.max(common[at + width], common[at + 1]);
      }

    const changed = [new Set(), new Set()];
    let i = 0;
    let j = 0;
    while (i < rows || j < columns) {
      const at = i * width + j;
      if (i < rows && j < columns && a[i] === b[j]) i++, j++;
      else if (j === columns || (i < rows && common[at + width] >= common[at + 1])) changed[0].add(start + i++);
      else changed[1].add(start + j++);
    }
    return changed;
  }

  /** Joins neighboring words that differ, or do not, into pieces. The space after a marked piece is not marked. */
  function pieces(words, changed) {
    const joined = [];
    words.forEach((text, index) => {
      const differs = changed.has(index);
      if (joined.length && joined.at(-1).differs === differs) joined.at(-1).text += text;
      else joined.push({ text, differs });
    });
    return joined.flatMap(({ text, differs }) => {
      const word = differs ? text.trimEnd() : "";
      return [{ text: word, differs }, { text: text.slice(word.length), differs: false }];
    });
  }

  /** Replaces the content of node by `length` characters of the pieces from `start` on, and marks what differs. */
  function paint(node, parts, tag, start, length) {
    const nodes = [];
    let at = 0;
    for (const { text, differs } of parts) {
      const shown = text.slice(Math.max(0, start - at), Math.max(0, start + length - at));
      at += text.length;
      if (!shown) continue;
      const piece = differs ? document.createElement(tag) : document.createTextNode(shown);
      piece.textContent = shown;
      nodes.push(piece);
    }
    node.replaceChildren(...nodes);
  }

  function mark(pair) {
    if (marked.has(pair)) return;
    marked.add(pair);
    const contents = [".base .content", ".tuned .content"].map((part) => pair.querySelector(part));
    if (contents.includes(null)) return; // one completion is empty: there is nothing to compare
    const words = contents.map((content) => wordsOf(content.textContent));
    const changed = unmatched(...words.map((list) => list.map((word) => word.trim())));
    if (!changed) return;
    contents.forEach((content, model) => {
      const parts = pieces(words[model], changed[model]);
      const tag = ["del", "ins"][model];
      const text = content.textContent;
      const excerpt = content.closest("details")?.querySelector(".excerpt"); // the visible part of a folded text
      if (excerpt) {
        const { length } = excerpt.textContent;
        paint(excerpt, parts, tag, Math.max(0, text.indexOf(excerpt.textContent)), length);
      }
      paint(content, parts, tag, 0, text.length);
    });
  }

  function unmark(pair) {
    const nodes = pair.querySelectorAll(".completions .content, .completions .excerpt");
    for (const node of nodes) node.replaceChildren(node.textContent);
  }

  // Pairs are compared when they come near the screen, so that a page of a thousand examples stays fast.
  const near = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => mark(entry.target)),
    { rootMargin: "400px" },
  );

  function update() {
    near.disconnect();
    marked.forEach(unmark);
    marked.clear();
    if (toggle.checked) pairs.forEach((pair) => near.observe(pair));
  }

  toggle.addEventListener("change", update);
  document.addEventListener("keydown", (event) => {
    if (isRating() || !isForThePage(event) || event.key !== "f") return;
    toggle.checked = !toggle.checked;
    update();
    announce(toggle.checked ? "Differences shown" : "Differences hidden");
  });
})();
