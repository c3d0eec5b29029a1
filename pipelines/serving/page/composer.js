// The form: a free prompt or a task with its columns as fields, the system prompt, the settings; later a follow-up.
import { RequestError, request } from "./api.js";
import { rowTitle } from "./conversation.js";
import { byId, count, element, showLine } from "./dom.js";

const FREE = { name: null, prompt: null, messages: null, columns: [{ name: "prompt", required: true, json: false }] };

export class Composer {
  constructor(run, onSend) {
    this.run = run;
    this.onSend = onSend;
    this.options = [{ ...FREE, ...run.free }, ...run.tasks];
    byId("task").replaceChildren(
      ...this.options.map(({ name }, index) => element("option", { value: index, textContent: name ?? "Free prompt" })),
    );
    byId("task").addEventListener("change", () => this.showTask());
    byId("fill").addEventListener("click", () => this.fill(byId("row").valueAsNumber));
    byId("random").addEventListener("click", () => this.fill(1 + Math.floor(Math.random() * this.task.rows)));
    byId("row").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.fill(byId("row").valueAsNumber);
    });
    byId("defaults").addEventListener("click", () => this.setDefaults());
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("task").selectedIndex = run.tasks.length ? 1 : 0;
    this.showTask();
  }

  /** The chosen task, or that of a free prompt, whose name is null. */
  get task() {
    return this.options[byId("task").selectedIndex];
  }

  /** Shows the form of a new conversation, or that of a further message. */
  setFollowing(isFollowing) {
    this.isFollowing = isFollowing;
    for (const id of ["start", "setup"]) byId(id).hidden = isFollowing;
    byId("send").textContent = isFollowing ? "Send follow-up" : "Send";
    this.showError("");
    if (!isFollowing) return this.showFields();
    this.fields = [field({ name: "Follow-up", required: true, json: false }, 2)];
    byId("columns").replaceChildren(this.fields[0].node);
  }

  showTask() {
    this.filled = null;
    this.drafts = {};
    const { rows, prompt, name } = this.task;
    byId("rows").hidden = !rows;
    byId("row-label").textContent = name === null ? "Sample prompt" : "Test row";
    byId("row").max = rows;
    byId("row").value = "";
    this.showRowCount();
    byId("template-box").hidden = prompt === null;
    byId("template").textContent = prompt ?? "";
    byId("setup").querySelector("summary").textContent =
      prompt === null ? "System prompt and settings" : "Template, system prompt and settings";
    this.setDefaults();
    this.showFields();
  }

  /** The number of rows; with the number that the report gives to the row that fills the form. */
  showRowCount(row = null) {
    byId("row-count").textContent = `of ${this.task.rows.toLocaleString("en")}${row === null ? "" : ` (row ${row} of the file)`}`;
  }

  setDefaults() {
    byId("system").value = this.task.system ?? "";
    byId("temperature").value = this.run.temperature;
    byId("max-tokens").value = this.task.max_tokens;
    byId("seed").value = "";
  }

  showFields() {
    this.fields = this.task.columns.map((column) => {
      const isConversation = column.name === this.task.messages;
      const rows = this.task.columns.length > 2 ? 2 : 4;
      return field({ ...column, isConversation }, rows, this.task.name === null);
    });
    byId("columns").replaceChildren(...this.fields.map(({ node }) => node));
  }

  /** Fills the form with a test row of the task, or with a sample prompt. `number` is from 1. */
  async fill(number) {
    const { name, rows } = this.task;
    if (!(number >= 1 && number <= rows && Number.isInteger(number))) {
      return this.showError(`Write a number from 1 to ${rows.toLocaleString("en")}.`);
    }
    const query = new URLSearchParams({ ...(name !== null && { task: name }), index: number - 1 });
    try {
      const row = await request(`/alfine/row?${query}`);
      byId("row").value = number;
      this.showRowCount(row.row);
      for (const one of this.fields) one.set(name === null ? row.prompt : row.fields[one.name]);
      this.filled = { row, values: this.fields.map((one) => one.input.value) };
      this.showError("");
    } catch (error) {
      this.showError(error.message);
    }
  }

  showError(message) {
    showLine(byId("composer-error"), message);
  }

  /** Reads the form and hands it on. The text of a field that was rejected stays. */
  async send() {
    if (this.isSending || byId("send").disabled) return;
    const read = this.isFollowing ? { text: this.fields[0].input.value } : this.readStart();
    if (read === null) return;
    if ("text" in read && read.text !== null && !read.text.trim()) {
      this.showError("Write a prompt first.");
      return this.fields[0].input.focus();
    }
    this.isSending = true;
    this.showError("");
    try {
      await this.onSend(read);
    } catch (error) {
      if (!(error instanceof RequestError)) console.error(error);
      this.showError(error instanceof RequestError ? error.message : "The page failed; load it again.");
    } finally {
      this.isSending = false;
    }
  }

  readStart() {
    const { name, system } = this.task;
    const settings = this.readSettings();
    if (settings === null) return null;
    const common = { task: name, settings, system: byId("system").value };
    common.isCode = this.task.is_code ?? false;
    common.isSystemOfRun = common.system === (system ?? "");
    if (name === null) return { ...common, row: null, text: this.fields[0].input.value, title: "Prompt", reference: null };
    const row = {};
    for (const one of this.fields) {
      try {
        const value = one.read();
        if (value !== undefined) row[one.name] = value;
      } catch {
        this.showError(`${one.name} is not JSON; write a list, as in [{"role": "user", "content": "…"}].`);
        one.input.focus();
        return null;
      }
    }
    const isTestRow = this.filled && this.fields.every((one, index) => one.input.value === this.filled.values[index]);
    const title = isTestRow ? rowTitle(name, this.filled.row) : name;
    return { ...common, row, text: null, title, reference: isTestRow ? this.filled.row.reference : null };
  }

  readSettings() {
    for (const id of ["temperature", "max-tokens", "seed"]) {
      if (byId(id).checkValidity()) continue;
      byId("setup").open = true;
      this.showError(`${byId(id).labels[0].textContent.trim()}: ${byId(id).validationMessage}`);
      byId(id).focus();
      return null;
    }
    const seed = byId("seed").value;
    const numbers = { temperature: byId("temperature").valueAsNumber, max_tokens: byId("max-tokens").valueAsNumber };
    return { ...numbers, seed: seed === "" ? null : Number(seed) };
  }

  setBusy(isBusy) {
    byId("send").disabled = isBusy;
    byId("stop").hidden = byId("esc").hidden = !isBusy;
  }

  focus() {
    this.fields[0].input.focus();
  }

  /** What is sent, in words, for the title of a conversation. */
  static describe({ task, text, row }) {
    const shown = text ?? Object.values(row ?? {}).find((value) => typeof value === "string") ?? count(1, "row");
    const line = `${task === null ? "" : `${task}: `}${shown}`.replace(/\s+/g, " ");
    return line.length > 90 ? `${line.slice(0, 89)}…` : line;
  }
}

/** A field for a column. Values that are no text, and that the user leaves as they are, are sent as they were. */
function field({ name, required, json, isConversation }, rows, isFree = false) {
  const input = element("textarea", { rows, spellcheck: false });
  const title = isFree ? "Your prompt" : isConversation ? "Message, or a conversation as JSON" : name;
  const optional = required ? [] : [element("span", { className: "small", textContent: " (may be empty)" })];
  const node = element("label", { className: "wide" }, element("span", {}, title, ...optional), input);
  let original = null;
  return {
    name,
    node,
    input,
    set(value) {
      const text = typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value, null, 1);
      input.value = text;
      original = { value, text: input.value };
    },
    read() {
      if (original && input.value === original.text) return original.value;
      if (isConversation) return conversation(input.value);
      if (json) return input.value.trim() ? JSON.parse(input.value) : name === "history" ? [] : undefined;
      return input.value === "" && !required ? undefined : input.value;
    },
  };
}

/** The messages that a text is: those that it has as JSON, or one of the user. */
function conversation(text) {
  try {
    const messages = JSON.parse(text);
    if (Array.isArray(messages)) return messages;
  } catch {
    // A text.
  }
  return [{ role: "user", content: text }];
}
