// One answer of a model: its text as it streams, the reasoning folded, what ended it, its tokens, and errors.
import { copyButton, count, element, printable, showLine } from "./dom.js";
import { TokenSplitter, hideCard, inspectTokens, tokenSpan, tokenTable } from "./tokens.js";

export class AnswerView {
  /** `name`: the heading. `model`: base or tuned, null as long as it is not to be known. */
  constructor(name, model, answer) {
    this.heading = element("h4");
    this.thought = element("div", { className: "text" });
    this.thoughtSummary = element("summary");
    this.thoughtBox = element("details", { className: "thought", hidden: true }, this.thoughtSummary, this.thought);
    this.text = element("div", { className: "text content", role: "group" });
    this.line = element("p", { className: "line", hidden: true, role: "alert" });
    this.retry = element("button", { type: "button", textContent: "Try again", hidden: true });
    this.table = element("details", { className: "token-table", hidden: true }, element("summary", { textContent: "Tokens" }));
    this.table.addEventListener("toggle", () => this.showTable());
    this.copy = copyButton("copy", () => this.answer.text);
    const tools = element("div", { className: "tools" }, this.copy, this.table);
    this.node = element("div", {}, this.heading, this.thoughtBox, this.text, this.line, this.retry, tools);
    inspectTokens(this.text, (span) => (this.model ? this.pieces[this.spans.indexOf(span)] : null));
    this.setName(name, model);
    this.reset(answer);
  }

  /** Names the model, or hides which one it is. */
  setName(name, model) {
    this.name = name;
    this.model = model;
    this.node.className = model ?? "";
    if (this.answer) this.showState();
  }

  /** Shows `answer`, or begins an empty one. */
  reset(answer = { text: "", reasoning: "", finish: null, tokens: 0, seconds: null }) {
    this.answer = answer;
    this.splitter = new TokenSplitter();
    this.pieces = [];
    this.spans = [];
    this.text.replaceChildren(printable(answer.text));
    this.thought.textContent = printable(answer.reasoning);
    showLine(this.line, "");
    this.retry.hidden = true;
    this.showState();
  }

  /** Adds a chunk of a streamed completion. */
  append(chunk) {
    const choice = chunk.choices?.[0];
    if (chunk.usage) this.answer.tokens = chunk.usage.completion_tokens;
    if (!choice) return;
    const { content, reasoning_content: thought, reasoning = thought } = choice.delta ?? {};
    if (typeof reasoning === "string" && reasoning) {
      this.answer.reasoning += reasoning;
      this.thought.append(printable(reasoning));
    }
    const tokens = choice.logprobs?.content ?? [];
    if (!chunk.usage) this.answer.tokens += tokens.length;
    if (typeof content === "string" && content) this.answer.text += content;
    this.addPieces(this.splitter.push(content ?? "", reasoning ? [] : tokens));
    if (choice.finish_reason) this.answer.finish = choice.finish_reason;
    if (this.thoughtBox.hidden === Boolean(this.answer.reasoning)) this.showState();
    this.updateThought();
  }

  addPieces(pieces) {
    for (const piece of pieces) {
      const span = tokenSpan(piece);
      this.pieces.push(piece);
      this.spans.push(span);
      this.text.append(span);
    }
  }

  setBusy(busy) {
    this.text.setAttribute("aria-busy", String(busy));
    this.node.classList.toggle("busy", busy);
    this.isBusy = busy;
    this.showState();
  }

  /** Ends the answer, complete or stopped. */
  end(seconds) {
    this.addPieces(this.splitter.end());
    this.answer.seconds = seconds;
    this.setBusy(false);
  }

  /** Shows an error, with a button that calls `again`. */
  fail(message, again) {
    this.addPieces(this.splitter.end());
    this.setBusy(false);
    showLine(this.line, message);
    this.retry.hidden = false;
    this.retry.onclick = again;
  }

  wait(message) {
    showLine(this.line, message);
  }

  updateThought() {
    this.thoughtSummary.textContent = `Reasoning, ${count(this.answer.reasoning.length, "character")}`;
  }

  /** The heading, what an empty answer says, and which controls there are. */
  showState() {
    const { text, reasoning, finish, tokens, seconds } = this.answer;
    this.thoughtBox.hidden = !reasoning;
    this.updateThought();
    const state = [];
    if (this.model && tokens && !this.isBusy) state.push(count(tokens, "token"));
    if (this.model && seconds && !this.isBusy) state.push(`${seconds.toFixed(1)} s`);
    if (finish === "length") state.push("cut at the limit");
    if (finish === "stopped") state.push("stopped");
    const details = state.length ? [" ", element("span", { textContent: state.join(" · ") })] : [];
    this.heading.replaceChildren(this.name, ...details);
    const isEmpty = !text.trim() && !this.isBusy && finish !== null;
    this.text.classList.toggle("empty", isEmpty);
    if (isEmpty) this.text.textContent = noAnswer(reasoning, finish);
    this.copy.hidden = !text || this.isBusy;
    this.copy.setAttribute("aria-label", `copy the answer of ${this.name}`);
    const hasTokens = Boolean(this.model) && !this.isBusy && this.pieces.some((piece) => piece.tokens.length);
    this.table.hidden = !hasTokens;
    this.text.tabIndex = hasTokens ? 0 : -1;
    const help = hasTokens ? ", arrow keys step through the tokens" : "";
    this.text.setAttribute("aria-label", `Answer of ${this.name}${help}`);
    if (!this.model) hideCard();
  }

  showTable() {
    this.table.querySelector("div")?.remove();
    if (!this.table.open) return;
    const label = { role: "region", "aria-label": `Tokens of ${this.name}` };
    this.table.append(element("div", { className: "scroll", tabIndex: 0, ...label }, tokenTable(this.pieces)));
  }
}

/** What stands for an empty answer, as in the report. */
function noAnswer(reasoning, finish) {
  if (reasoning && finish === "length") return "(no answer: cut inside the reasoning)";
  return reasoning ? "(no answer after the reasoning)" : "(nothing)";
}
