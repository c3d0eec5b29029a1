"use strict";
// Functions that the other scripts share.

/** The names of the two models; in the page's markup they are always .base and .tuned. */
const MODELS = JSON.parse(document.body.dataset.models);

/** The texts of an example or a sample prompt, as the page shows them unfolded. */
function readPair(pair) {
  const read = (part) => {
    const content = pair.querySelector(`${part} .content`);
    if (!content) return "";
    return content.textContent + (content.parentElement.querySelector(":scope > .truncated") ? " …" : "");
  };
  return {
    prompt: read(".prompt"),
    reference: read(".reference"),
    base: read(".base"),
    fewShot: read(".few-shot"),
    tuned: read(".tuned"),
  };
}

/** Whether a key is meant for the page: the user does not type, choose from a list or use a shortcut of the browser. */
function isForThePage(event) {
  const typed = "select, textarea, input:not([type=radio], [type=checkbox])";
  return !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest(typed);
}

const isRating = () => document.body.classList.contains("rating");

/** Announces the text to screen readers. */
function announce(text) {
  document.getElementById("status").textContent = text;
}
