// Conversations that this browser keeps for a run.
import { Composer } from "./composer.js";
import { byId, element, load, printable, store } from "./dom.js";

const MAX_CONVERSATIONS = 100;

export class History {
  constructor(runName, onOpen) {
    this.key = `alfine history ${runName}`;
    this.onOpen = onOpen;
    byId("show-history").addEventListener("click", () => this.toggle());
    byId("history-clear").addEventListener("click", () => {
      if (!confirm("Delete all conversations that this browser keeps for this run?")) return;
      this.write([]);
      this.render();
    });
  }

  /** The conversations, the newest first. */
  read() {
    const saved = load("localStorage", this.key, []);
    return Array.isArray(saved) ? saved.filter((entry) => entry?.id && Array.isArray(entry.turns) && entry.start) : [];
  }

  /** Stores the conversations; the oldest are dropped until the browser has room for the rest. */
  write(entries) {
    const kept = entries.slice(0, MAX_CONVERSATIONS);
    while (!store("localStorage", this.key, kept) && kept.length > 1) kept.pop();
    const isStored = store("localStorage", this.key, kept);
    byId("history-note").textContent = isStored ? "Kept in this browser only." : "This browser does not store data for this page.";
  }

  save(conversation) {
    const entry = JSON.parse(JSON.stringify(conversation));
    this.write([entry, ...this.read().filter(({ id }) => id !== entry.id)]);
    this.render();
  }

  toggle(isOpen = byId("history").hidden) {
    byId("history").hidden = !isOpen;
    byId("show-history").setAttribute("aria-expanded", String(isOpen));
    if (isOpen) this.render();
  }

  render() {
    const entries = this.read();
    byId("history-clear").hidden = !entries.length;
    const items = entries.map((entry) => {
      const title = printable(Composer.describe(entry.start));
      const open = element("button", { type: "button", className: "open" }, element("span", { textContent: title }));
      open.append(element("span", { className: "small", textContent: new Date(entry.time).toLocaleString() }));
      open.addEventListener("click", () => {
        this.toggle(false);
        this.onOpen(entry);
      });
      const remove = element("button", { type: "button", className: "copy", textContent: "delete" });
      remove.setAttribute("aria-label", `delete ${title}`);
      remove.addEventListener("click", () => {
        this.write(this.read().filter(({ id }) => id !== entry.id));
        this.render();
        (byId("history-list").querySelector("button") ?? byId("show-history")).focus();
      });
      return element("li", {}, open, remove);
    });
    byId("history-list").replaceChildren(...items);
    if (!items.length) byId("history-list").append(element("li", { className: "small", textContent: "Nothing yet." }));
  }
}
