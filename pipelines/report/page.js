"use strict";
// What the other scripts share.

/** The names of the two models; in the page's markup they are always .base and .tuned. */
const MODELS = JSON.parse(document.body.dataset.models);

/** The texts of an example or a sample prompt as the page shows them, unfolded. */
function readPair(pair) {
  const read = (part) => {
    const said = pair.querySelector(`${part} .said`);
    return said ? said.textContent + (said.parentElement.querySelector(":scope > .cut") ? " …" : "") : "";
  };
  return { prompt: read(".prompt"), reference: read(".reference"), base: read(".base"), tuned: read(".tuned") };
}

/** Whether a key is the page's: nobody types, chooses from a list or asks the browser for something. */
function isForThePage(event) {
  const typed = "select, textarea, input:not([type=radio], [type=checkbox])";
  return !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest(typed);
}

const isRating = () => document.body.classList.contains("rating");

/** Has a screen reader say it. */
function announce(text) {
  document.getElementById("status").textContent = text;
}
