// Probabilities of tokens: pieces of an answer's text with the tokens that they are, a card by pointer or arrow keys,
// and a table.
import { announce, byId, count, element, printable } from "./dom.js";

const LEVELS = [0.9, 0.7, 0.5, 0.3, 0.1];

/** Splits streamed text into pieces, each with the tokens that make it up. Text and tokens may arrive at different times. */
export class TokenSplitter {
  text = "";
  tokens = [];

  /** The pieces that are complete after this text and these entries of `logprobs.content`. */
  push(text, tokens) {
    this.text += text;
    this.tokens.push(...tokens);
    const pieces = [];
    for (let used = 1; this.text && used <= this.tokens.length; used++) {
      const joined = decode(this.tokens.slice(0, used));
      if (joined === null) continue; // a part of a character
      if (this.text.startsWith(joined)) {
        if (joined) {
          pieces.push(this.take(joined.length, used));
          used = 0;
        }
      } else if (!joined.startsWith(this.text)) {
        used = this.dropHidden() ? 0 : used;
        if (used) return [...pieces, this.take(this.text.length, this.tokens.length)]; // another text than the tokens'
      }
    }
    if (this.text && !this.tokens.length) pieces.push(this.take(this.text.length, 0));
    return pieces;
  }

  /** Drops tokens that are not in the text, such as the end of the reasoning. Returns whether one follows that is. */
  dropHidden() {
    const begins = (token) => decode([token]) && this.text.startsWith(decode([token]));
    const first = this.tokens.findIndex(begins);
    if (first > 0) this.tokens.splice(0, first);
    return first > 0;
  }

  /** The rest, when the answer ends. */
  end() {
    return this.text ? [this.take(this.text.length, this.tokens.length)] : [];
  }

  take(length, used) {
    const piece = { text: this.text.slice(0, length), tokens: this.tokens.splice(0, used) };
    this.text = this.text.slice(length);
    return piece;
  }
}

/** The text of tokens; null if they end within a character. */
function decode(tokens) {
  if (!tokens.every((token) => Array.isArray(token.bytes))) return tokens.map((token) => token.token ?? "").join("");
  try {
    const bytes = new Uint8Array(tokens.flatMap((token) => token.bytes));
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

export function probabilityOf(piece) {
  if (!piece.tokens.length) return null;
  return Math.exp(piece.tokens.reduce((sum, token) => sum + token.logprob, 0));
}

export function percent(probability) {
  const value = 100 * probability;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value > 99.9 && value < 100 ? "> 99.9" : value.toFixed(1)} %`;
}

/** The text of a token in quotes, with visible line breaks and spaces at its ends. */
export function quoted(text) {
  const shown = printable(text).replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  return `“${shown.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length))}”`;
}

function alternatives(piece) {
  if (piece.tokens.length !== 1) return [];
  const [{ token, top_logprobs: top }] = piece.tokens;
  return (top ?? []).filter((other) => other.token !== token).slice(0, 4);
}

/** The span of a piece. Its level is the shade: 0 for a token that was nearly certain. */
export function tokenSpan(piece) {
  const span = element("span", { className: "token", textContent: printable(piece.text) });
  const probability = probabilityOf(piece);
  if (probability !== null) {
    const level = LEVELS.findIndex((limit) => probability >= limit);
    span.dataset.level = level < 0 ? LEVELS.length : level;
  }
  return span;
}

/** A table of all tokens of an answer. */
export function tokenTable(pieces) {
  const row = (kind, texts, scope) =>
    element("tr", {}, ...texts.map((text, index) => element(index ? kind : "th", cell(index, scope), text)));
  const cell = (index, scope) => ({ ...(index === 1 && { className: "n" }), ...((scope || !index) && { scope: scope ?? "row" }) });
  const body = pieces.map((piece) => {
    const probability = probabilityOf(piece);
    const others = alternatives(piece).map((other) => `${quoted(other.token)} ${percent(Math.exp(other.logprob))}`);
    return row("td", [quoted(piece.text), probability === null ? "" : percent(probability), others.join(", ")]);
  });
  const head = row("th", ["Token", "Probability", "Instead of it"], "col");
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

function cardLines(piece) {
  const probability = probabilityOf(piece);
  if (probability === null) return [];
  const together = piece.tokens.length > 1 ? ` (${count(piece.tokens.length, "token")})` : "";
  const first = `${quoted(piece.text)} ${percent(probability)}${together}`;
  return [first, ...alternatives(piece).map((other) => `${quoted(other.token)} ${percent(Math.exp(other.logprob))}`)];
}

function showCard(span, piece) {
  const card = byId("token");
  const lines = cardLines(piece);
  hideCard();
  if (!lines.length) return "";
  card.replaceChildren(...lines.map((line, index) => element(index ? "div" : "strong", { textContent: line })));
  card.hidden = false;
  span.classList.add("current");
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - card.offsetWidth - 8));
  card.style.left = `${left + scrollX}px`;
  const below = box.bottom + card.offsetHeight + 8 < innerHeight;
  card.style.top = `${(below ? box.bottom + 4 : box.top - card.offsetHeight - 4) + scrollY}px`;
  return lines.join(", ");
}

export function hideCard() {
  byId("token").hidden = true;
  document.querySelector(".token.current")?.classList.remove("current");
}

/** Lets a pointer, a finger or the arrow keys show the card of a token in `text`. `pieceOf(span)` is its piece. */
export function inspectTokens(text, pieceOf) {
  const spanOf = (event) => (event.target instanceof Element ? event.target.closest(".token") : null);
  for (const kind of ["pointerover", "click"]) {
    text.addEventListener(kind, (event) => {
      const span = spanOf(event);
      if (span && pieceOf(span)) showCard(span, pieceOf(span));
    });
  }
  text.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hideCard());
  text.addEventListener("blur", hideCard);
  text.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const spans = [...text.querySelectorAll(".token[data-level]")];
    if (event.ctrlKey || event.metaKey || event.altKey || !spans.length) return;
    const current = spans.indexOf(text.querySelector(".current"));
    let next = null;
    if (Object.hasOwn(steps, event.key)) next = current < 0 ? 0 : current + steps[event.key];
    if (event.key === "Home") next = 0;
    if (event.key === "End") next = spans.length - 1;
    if (next === null) return;
    event.preventDefault();
    const span = spans[Math.max(0, Math.min(next, spans.length - 1))];
    span.scrollIntoView({ block: "nearest" });
    announce(showCard(span, pieceOf(span)));
  });
}
