// The buttons "copy as Markdown", which copy an example for an issue or a chat.
(() => {
  /** A code block. Its fence is longer than any run of backticks in the text. */
  function block(text) {
    const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
    const fence = "`".repeat(longest + 1);
    return `${fence}text\n${text}\n${fence}`;
  }

  function markdown(pair) {
    const { prompt, reference, base, fewShot, tuned } = readPair(pair);
    const line = (selector) => pair.querySelector(selector)?.textContent.replace(/\s+/g, " ").trim() ?? "";
    const parts = [`### ${line("h3")}${line(".tag") && `: ${line(".tag")}`}`, "Prompt", block(prompt)];
    if (pair.querySelector(".reference")) parts.push("Reference", block(reference));
    parts.push(line(".base h4"), block(base));
    if (pair.querySelector(".few-shot")) parts.push(line(".few-shot h4"), block(fewShot));
    parts.push(line(".tuned h4"), block(tuned));
    return parts.join("\n\n") + "\n";
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Some browsers have no clipboard API for a page that was opened as a file; execCommand works there.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const copied = document.execCommand("copy");
      area.remove();
      if (!copied) throw new Error("the browser refused");
    }
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".copy");
    if (!button) return;
    const message = await copy(markdown(button.closest(".pair"))).then(
      () => "copied",
      () => "not copied: the browser refused",
    );
    button.focus(); // execCommand moved the focus
    button.textContent = message;
    announce(message);
    setTimeout(() => (button.textContent = "copy as Markdown"), 1500);
  });
})();
