// A conversation with both models: its turns on the page, and their streams.
import { RequestError, request, streamCompletion, withRetries } from "./api.js";
import { AnswerView } from "./answers.js";
import { announce, copyButton, element, printable } from "./dom.js";

export const MODELS = ["base", "tuned"];
const TOP_LOGPROBS = 5;
const LONG = 700;

/** Base or Tuned. */
export const heading = (model) => model.charAt(0).toUpperCase() + model.slice(1);

/** A test row in words, as in the report. */
export const rowTitle = (task, { row, answer }) => `${task}, row ${row}${answer === null ? "" : `, answer ${answer}`}`;

/** A text as a block; a long one is folded. */
export function textBlock(text, className) {
  const shown = printable(text);
  if (shown.length <= LONG && shown.split("\n").length <= 16) {
    return element("div", { className: `text content ${className}`, textContent: shown || "(nothing)" });
  }
  const excerpt = element("span", { className: "excerpt", textContent: shown.trim().slice(0, 400) });
  const summary = element("summary", {}, excerpt, element("span", { className: "toggle" }));
  const content = element("span", { className: "content", textContent: shown });
  return element("details", { className: `text ${className}` }, summary, content);
}

export class Conversation {
  /**
   * start: task (or null), isCode, row, text, system, isSystemOfRun, settings, title, reference.
   * blind: {left: model} if the models have no names, else null.
   */
  constructor(start, blind) {
    Object.assign(this, { start, blind, id: randomId(), time: Date.now(), turns: [], head: [], controller: null });
    this.node = element("div");
  }

  /** The models by side. */
  get sides() {
    return this.blind?.left === "tuned" ? ["tuned", "base"] : MODELS;
  }

  /** Whether the names are hidden. */
  get isHidden() {
    return this.blind !== null && !this.blind.isOver;
  }

  get isBusy() {
    return this.controller !== null;
  }

  /** Whether all turns have both answers, without an error. */
  get isComplete() {
    return this.turns.length > 0 && !this.isBusy && this.turns.every((turn) => MODELS.every((m) => turn[m].finish !== null));
  }

  /** Fills the template of the task. Throws RequestError if the row does not fit it. */
  async prepare() {
    const { task, row, system, isSystemOfRun, text } = this.start;
    if (task === null) {
      this.head = [{ role: "user", content: text }];
    } else {
      this.head = (await request("/alfine/prompt", { task, row })).messages;
    }
    if (!isSystemOfRun) {
      const turns = this.head.filter((message) => message.role !== "system");
      this.head = [{ role: "system", content: system }, ...turns];
    }
  }

  /** Sends the first prompt. */
  async begin() {
    await this.run(this.addTurn(promptText(this.head), this.start.title, this.start.reference));
  }

  /** Sends a further message of the user. */
  async follow(text) {
    await this.run(this.addTurn(text, ""));
  }

  /** Adds a turn, with answers if they are known, and shows it. */
  addTurn(prompt, title, reference = null, answers = {}) {
    const turn = { prompt, title, reference, views: {} };
    const columns = this.sides.map((model, side) => {
      const view = new AnswerView(this.nameOf(model, side), this.isHidden ? null : model, answers[model]);
      turn.views[model] = view;
      return view.node;
    });
    for (const model of MODELS) Object.defineProperty(turn, model, { get: () => turn.views[model].answer });
    const head = element("div", { className: "head" }, element("h3", { textContent: title || "Prompt" }));
    head.append(copyButton("copy as Markdown", () => this.markdown(turn)));
    const parts = [head, textBlock(prompt, "prompt")];
    if (reference !== null) {
      const text = element("div", { className: "text", textContent: printable(reference) });
      parts.push(element("details", { className: "reference" }, element("summary", { textContent: "Reference" }), text));
    }
    turn.node = element("article", { className: this.start.isCode ? "pair code" : "pair", tabIndex: -1 }, ...parts);
    turn.node.append(element("div", { className: "completions" }, ...columns));
    turn.node.setAttribute("aria-label", title || `Turn ${this.turns.length + 1}`);
    this.turns.push(turn);
    this.node.append(turn.node);
    return turn;
  }

  nameOf(model, side) {
    return this.isHidden ? ["Left", "Right"][side] : heading(model);
  }

  /** Shows the names, when the vote is cast or blind mode ends. */
  reveal() {
    for (const turn of this.turns) for (const model of MODELS) turn.views[model].setName(heading(model), model);
  }

  /** Streams both answers of a turn. */
  async run(turn, models = MODELS) {
    this.controller ??= new AbortController();
    const { controller } = this;
    this.running = (this.running ?? 0) + 1;
    this.onChange?.();
    await Promise.all(models.map((model) => this.answer(turn, model, controller.signal)));
    this.running -= 1;
    if (!this.running) this.controller = null;
    this.onChange?.();
    if (!this.isBusy && !controller.signal.aborted) announce("Both answers are complete.");
  }

  async answer(turn, model, signal) {
    const view = turn.views[model];
    const body = this.body(turn, model);
    const started = performance.now();
    try {
      await withRetries(
        async () => {
          view.reset();
          view.setBusy(true);
          for await (const chunk of streamCompletion(body, signal)) view.append(chunk);
          view.answer.finish ??= "stop";
        },
        signal,
        (line) => view.wait(line),
      );
      view.end((performance.now() - started) / 1000);
    } catch (error) {
      if (signal.aborted) {
        view.answer.finish = "stopped";
        view.wait("");
        view.end((performance.now() - started) / 1000);
        return;
      }
      if (!(error instanceof RequestError)) console.error(error);
      const message = error instanceof RequestError ? error.message : "The page failed; load it again.";
      view.answer.finish = null;
      view.fail(message, () => this.run(turn, [model]));
    }
  }

  stop() {
    this.controller?.abort();
  }

  /** The request for the answer of a model: the first one of a task as in the run, all others as messages. */
  body(turn, model) {
    const { task, row, isSystemOfRun, settings } = this.start;
    const sampling = { temperature: settings.temperature, max_tokens: settings.max_tokens };
    if (settings.seed !== null) sampling.seed = settings.seed;
    const options = { model, ...sampling, logprobs: true, top_logprobs: TOP_LOGPROBS };
    if (task !== null) options.task = task;
    const index = this.turns.indexOf(turn);
    if (index === 0 && task !== null && isSystemOfRun) return { ...options, row };
    const messages = [...this.head];
    this.turns.slice(0, index).forEach((earlier, position) => {
      messages.push({ role: "assistant", content: earlier[model].text });
      messages.push({ role: "user", content: this.turns[position + 1].prompt });
    });
    return { ...options, messages };
  }

  markdown(turn) {
    const parts = ["Prompt", block(turn.prompt)];
    if (turn.reference !== null) parts.push("Reference", block(turn.reference));
    for (const model of this.sides) parts.push(turn.views[model].name, block(turn[model].text));
    return `### ${turn.title || "Prompt"}\n\n${parts.join("\n\n")}\n`;
  }

  /** The conversation as plain data, for the history. */
  toJSON() {
    const { id, time, start, head } = this;
    const blind = this.blind && { ...this.blind, isOver: true };
    const turns = this.turns.map(({ prompt, title, reference, base, tuned }) => ({ prompt, title, reference, base, tuned }));
    return { id, time, start, head, blind, turns };
  }

  /** A conversation of the history. */
  static fromJSON({ id, time, start, head, blind, turns }) {
    const conversation = Object.assign(new Conversation(start, blind), { id, time, head });
    for (const { prompt, title, reference, base, tuned } of turns) {
      conversation.addTurn(prompt, title, reference, { base, tuned });
    }
    return conversation;
  }
}

/** An identifier. crypto.randomUUID() is missing on pages that came over plain HTTP from another machine. */
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The text of messages: of the only one of the user, or of all turns with their roles. */
function promptText(messages) {
  const turns = messages.filter((message) => message.role !== "system");
  if (turns.length === 1) return turns[0].content;
  return turns.map((message) => `${message.role}: ${message.content}`).join("\n\n");
}

/** A code block. Its fence is longer than any run of backticks in the text. */
function block(text) {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}text\n${text}\n${fence}`;
}
