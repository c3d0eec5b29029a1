// Blind mode: hidden names, random sides, votes by buttons and keys, and the run's test rows one after the other.
import { request } from "./api.js";
import { Conversation, MODELS, rowTitle } from "./conversation.js";
import { announce, byId, count, load, showLine, store } from "./dom.js";

const KEYS = { ArrowLeft: "left", ArrowRight: "right", t: "tie", b: "both bad" };
const RATER = "alfine rater";

export class BlindMode {
  /** `app` has `run`, `conversation`, `history` and `show(conversation)`; `onVoted(conversation)` is called for every saved vote. */
  constructor(app, onVoted) {
    Object.assign(this, { app, onVoted, isOn: false, previous: null });
    byId("rater").value = load("localStorage", RATER, "");
    byId("rater").addEventListener("input", () => store("localStorage", RATER, byId("rater").value));
    byId("rate-rows").addEventListener("click", () => this.nextRow());
    byId("next").addEventListener("click", () => this.next());
    byId("votes").addEventListener("click", (event) => {
      const { choice } = event.target.closest("button")?.dataset ?? {};
      if (choice) this.vote(choice);
    });
  }

  get rater() {
    return byId("rater").value.trim();
  }

  /** Sides for a new conversation; null outside of blind mode. */
  draw() {
    if (!this.isOn) return null;
    return { left: MODELS[crypto.getRandomValues(new Uint8Array(1))[0] % 2], choice: null, isOver: false };
  }

  toggle() {
    this.isOn = !this.isOn;
    document.body.classList.toggle("blind", this.isOn);
    byId("blind").setAttribute("aria-pressed", String(this.isOn));
    byId("blind-panel").hidden = !this.isOn;
    for (const id of ["probabilities", "show-history"]) byId(id).disabled = this.isOn;
    const { conversation, history } = this.app;
    history.toggle(false);
    this.previous = null;
    // A test row without a vote comes again, so its names stay unknown.
    const isPending = conversation?.start.testRow !== undefined && conversation.blind.choice === null;
    if (this.isOn || isPending) this.app.show(null);
    else if (conversation?.blind) {
      conversation.blind.isOver = true;
      conversation.reveal();
    }
    this.update();
    announce(this.isOn ? "Blind mode: the names are hidden." : "Blind mode is off.");
  }

  /** Shows the buttons for a vote when both answers are complete. */
  update() {
    const { conversation } = this.app;
    const isVotable = this.isOn && conversation?.blind !== null && conversation?.isComplete === true;
    byId("votes").hidden = !isVotable;
    if (!isVotable) return;
    const choice = this.sideOf(conversation);
    for (const button of byId("votes").querySelectorAll("[data-choice]")) {
      button.setAttribute("aria-pressed", String(button.dataset.choice === choice));
    }
    byId("next").hidden = conversation.blind.choice === null;
  }

  /** Calls for a vote when the answers of a conversation are complete. */
  invite() {
    this.update();
    const { conversation } = this.app;
    if (byId("votes").hidden) return;
    const { base, tuned } = conversation.turns.at(-1);
    const same = base.text === tuned.text ? "Both answers are the same. " : "";
    showLine(byId("vote-line"), `${same}Which is better?`);
    conversation.turns.at(-1).node.focus({ preventScroll: true });
  }

  /** The choice as the page shows it: left, right, tie or both bad. */
  sideOf({ blind, sides }) {
    const side = sides.indexOf(blind.choice);
    return side < 0 ? blind.choice : ["left", "right"][side];
  }

  async vote(choice) {
    const { conversation } = this.app;
    if (byId("votes").hidden || this.isSaving) return;
    const { start, blind, sides, turns, id, head } = conversation;
    const chosen = { left: sides[0], right: sides[1] }[choice] ?? choice;
    const isTestRow = start.testRow !== undefined;
    const system = head.find((message) => message.role === "system")?.content ?? start.system;
    const ballot = {
      id,
      rater: this.rater,
      task: start.task,
      row: isTestRow ? start.testRow.row : null,
      answer: isTestRow ? start.testRow.answer : null,
      system: isTestRow ? null : system || null,
      turns: turns.map(({ prompt, base, tuned }) => ({ prompt, base: base.text, tuned: tuned.text })),
      settings: isTestRow ? null : start.settings,
      left: blind.left,
      choice: chosen,
    };
    this.isSaving = true;
    try {
      await request("/alfine/votes", ballot);
      blind.choice = chosen;
      this.onVoted(conversation);
      announce("The vote is saved.");
      showLine(byId("vote-line"), "Saved. You can change it until you go on.");
      this.update();
      if (isTestRow) {
        this.previous = conversation;
        await this.nextRow();
      }
    } catch (error) {
      showLine(byId("vote-line"), `Not saved: ${error.message} Vote again.`);
    } finally {
      this.isSaving = false;
    }
  }

  /** Goes on after a vote. */
  next() {
    if (byId("next").hidden) return;
    if (this.app.conversation.start.testRow) this.nextRow();
    else this.app.show(null);
  }

  /** Shows the next test row that this rater has not rated, with the answers of the report. */
  async nextRow() {
    let reply;
    try {
      reply = await request(`/alfine/rating?${new URLSearchParams({ rater: this.rater })}`);
    } catch (error) {
      byId("rated").textContent = error.message;
      return;
    }
    const { item, rated, total } = reply;
    byId("rated").textContent = total ? `${rated} of ${count(total, "test row")} rated` : "This run has no test rows";
    if (item === null) return this.app.show(null);
    const testRow = { row: item.row, answer: item.answer };
    const isCode = this.app.run.tasks.some(({ name, is_code: isCode }) => name === item.task && isCode);
    const start = { task: item.task, isCode, row: null, text: null, system: null, settings: null, testRow };
    const conversation = new Conversation(start, this.draw());
    const answers = Object.fromEntries(MODELS.map((model) => [model, stored(item[model])]));
    conversation.addTurn(item.prompt, rowTitle(item.task, item), item.reference, answers);
    this.app.show(conversation);
    conversation.turns[0].node.scrollIntoView({ block: "start" });
  }

  /** Shows the test row of the last vote again, whose vote can be changed. */
  back() {
    if (!this.previous) return;
    const { previous } = this;
    this.previous = null;
    this.app.show(previous);
  }

  /** Handles a key. Returns whether it was one of blind mode. */
  key(event) {
    if (!this.isOn || event.repeat) return false;
    if (Object.hasOwn(KEYS, event.key) && !byId("votes").hidden) this.vote(KEYS[event.key]);
    else if (event.key === "n") this.next();
    else if (event.key === "u") this.back();
    else return false;
    return true;
  }
}

function stored({ text, reasoning }) {
  return { text, reasoning: reasoning ?? "", finish: "stop", tokens: 0, seconds: null };
}
