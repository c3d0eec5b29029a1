// Marks where two answers differ, word by word: <del> in the first side, <ins> in the second. The text itself stays
// as it is, so searching and copying know nothing of it.
(() => {
  const MOST_CELLS = 4e6; // of the table below, some 30 ms; longer pairs stay unmarked
  const toggle = document.getElementById("differences");
  const pairs = [...document.querySelectorAll("main .pair:has(> .completions > .base)")];
  const marked = new Set();

  let segmenter = null;

  /** The words of a text with the space behind them. The browser knows where words begin in every script, and splits no letter
      from its marks. */
  function wordsOf(text) {
    segmenter ??= new Intl.Segmenter("und", { granularity: "word" });
    const words = [];
    for (const { segment } of segmenter.segment(text)) {
      if (words.length && !segment.trim()) words[words.length - 1] += segment;
      else words.push(segment);
    }
    return words;
  }

  /** Which words of each list are not in their longest common subsequence; null where that is too much work. */
  function unmatched(one, other) {
    let start = 0;
    let endOne = one.length;
    let endOther = other.length;
    while (start < endOne && start < endOther && one[start] === other[start]) start++;
    while (endOne > start && endOther > start && one[endOne - 1] === other[endOther - 1]) endOne--, endOther--;
    const rows = endOne - start;
    const columns = endOther - start;
    if (rows * columns > MOST_CELLS) return null;

    // common[i, j]: length of the longest common subsequence of what follows word i in one and word j in other.
    const numbers = new Map();
    const numbered = (words) => Int32Array.from(words, (word) => numbers.get(word) ?? (numbers.set(word, numbers.size), numbers.size - 1));
    const a = numbered(one.slice(start, endOne));
    const b = numbered(other.slice(start, endOther));
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

  /** Neighbouring words of one kind as one piece; the space behind a marked piece is not marked. */
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

  /** Rewrites the `length` characters from `start` on into node, with the pieces that differ inside tags. */
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
    const saids = [".base .said", ".tuned .said"].map((part) => pair.querySelector(part));
    if (saids.includes(null)) return; // one side says nothing: all differs, and that is plain to see
    const words = saids.map((said) => wordsOf(said.textContent));
    const changed = unmatched(...words.map((list) => list.map((word) => word.trim())));
    if (!changed) return;
    saids.forEach((said, side) => {
      const parts = pieces(words[side], changed[side]);
      const whole = said.textContent;
      const start = said.closest("details")?.querySelector(".start"); // what a folded text shows
      if (start) paint(start, parts, ["del", "ins"][side], Math.max(0, whole.indexOf(start.textContent)), start.textContent.length);
      paint(said, parts, ["del", "ins"][side], 0, whole.length);
    });
  }

  function unmark(pair) {
    for (const text of pair.querySelectorAll(".completions .said, .completions .start")) text.replaceChildren(text.textContent);
  }

  // Only what comes near the screen is compared: a thousand examples cost nothing until they are read.
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
