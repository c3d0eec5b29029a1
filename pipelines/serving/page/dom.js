// Elements, text and messages. Text of models and users only ever becomes text nodes and attribute values.

export const byId = (id) => document.getElementById(id);

/** An element with these properties and children. `data-`, `aria-` and `role` are attributes. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (/^(data|aria)-|^(role|scope|for)$/.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

// Control characters, bidirectional overrides and unpaired surrogates: they would move the text around them.
const INVISIBLE =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]|\p{Surrogate}/gu;

/** Text with visible control characters: ␀ for NUL, ⟨U+202E⟩ for a bidirectional override. As in the report. */
export function printable(text) {
  return text.replaceAll("\r\n", "\n").replace(INVISIBLE, (character) => {
    const code = character.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** Announces the text to screen readers. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Shows one line in a node, or hides the node. */
export function showLine(node, text) {
  node.textContent = text ?? "";
  node.hidden = !text;
}

export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** A button that copies the text that `read` returns. */
export function copyButton(label, read) {
  const button = element("button", { type: "button", className: "copy", textContent: label });
  button.addEventListener("click", async () => {
    const copied = await copy(read()).then(
      () => true,
      () => false,
    );
    button.textContent = copied ? "copied" : "not copied: the browser refused";
    announce(button.textContent);
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // A page that came over plain HTTP from another machine has no clipboard API.
  const area = element("textarea", { value: text });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!copied) throw new Error("the browser refused");
}

/** A value in the browser's storage, or `fallback` if there is none, or no storage. */
export function load(storage, key, fallback) {
  try {
    return JSON.parse(window[storage].getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Stores a value. Returns whether the browser has stored it. */
export function store(storage, key, value) {
  try {
    window[storage].setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Whether the user types or chooses in a control, which keeps its own keys. */
export function isTyping(event) {
  const typed = "select, textarea, input:not([type=radio], [type=checkbox])";
  return event.target instanceof Element && event.target.closest(typed) !== null;
}
