// The page: two models answer one prompt side by side.
import { request, withRetries } from "./api.js";
import { BlindMode } from "./blind.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { byId, isTyping, load, printable, showLine, store } from "./dom.js";
import { History } from "./history.js";
import { hideCard } from "./tokens.js";

const app = { conversation: null, show };
const SHADED = "alfine probabilities";

/** Replaces the conversation on the page; null for a new one. */
function show(conversation) {
  app.conversation?.stop();
  if (app.conversation) app.conversation.onChange = null;
  hideCard();
  byId("conversation").replaceChildren(...(conversation ? [conversation.node] : []));
  app.conversation = conversation;
  if (conversation) conversation.onChange = update;
  app.composer.setFollowing(conversation !== null);
  update();
  if (!conversation && document.body.classList.contains("ready")) app.composer.focus();
}

/** Brings the controls in line with the conversation. */
function update() {
  const { conversation, composer, blind } = app;
  const isBusy = conversation?.isBusy ?? false;
  composer.setBusy(isBusy);
  const isRating = conversation?.start.testRow !== undefined;
  byId("compose").hidden = isRating;
  byId("new").disabled = conversation === null;
  if (isBusy) return blind.update();
  blind.invite();
  if (conversation?.isComplete && conversation.blind === null) app.history.save(conversation);
}

async function send(read) {
  if (app.composer.isFollowing) {
    app.composer.fields[0].input.value = "";
    byId("send").blur();
    return app.conversation.follow(read.text);
  }
  const conversation = new Conversation(read, app.blind.draw());
  await conversation.prepare();
  show(conversation);
  const running = conversation.begin();
  conversation.node.scrollIntoView({ block: "start" });
  return running;
}

function shade(isOn) {
  document.body.classList.toggle("shaded", isOn);
  byId("probabilities").setAttribute("aria-pressed", String(isOn));
  store("localStorage", SHADED, isOn);
}

function onKey(event) {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !byId("compose").hidden) {
    event.preventDefault();
    app.composer.send();
  } else if (event.key === "Escape") {
    hideCard();
    app.conversation?.stop();
  } else if (!isTyping(event) && !event.ctrlKey && !event.metaKey && !event.altKey && app.blind.key(event)) {
    event.preventDefault();
  }
}

async function start() {
  const { signal } = new AbortController();
  let run;
  try {
    run = await withRetries(() => request("/alfine/run"), signal, (line) => showLine(byId("page-error"), line));
    showLine(byId("page-error"), "");
  } catch (error) {
    return showLine(byId("page-error"), error.message);
  }
  app.run = run;
  document.title = `${printable(run.name)} · alfine serve`;
  byId("about").textContent = `${printable(run.name)}: ${printable(run.base_model)} and the model tuned from it.`;
  app.history = new History(run.name, (entry) => show(Conversation.fromJSON(entry)));
  app.composer = new Composer(run, send);
  app.blind = new BlindMode(app, (voted) => voted.start.testRow === undefined && app.history.save(voted));
  byId("new").addEventListener("click", () => show(null));
  byId("stop").addEventListener("click", () => app.conversation?.stop());
  byId("blind").addEventListener("click", () => app.blind.toggle());
  byId("probabilities").addEventListener("click", () => shade(!document.body.classList.contains("shaded")));
  shade(load("localStorage", SHADED, false) === true);
  document.addEventListener("keydown", onKey);
  document.addEventListener("scroll", hideCard, { passive: true });
  byId("compose").hidden = false;
  show(null);
  document.body.classList.add("ready");
}

start();
