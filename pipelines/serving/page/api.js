// Requests to the server: the API key, errors as one line, streams of completions, and what is tried again.
import { byId, load, showLine, store } from "./dom.js";

const KEY = "alfine key";
const MAX_TRIES = 5;

/** An error of the server or the connection, as one line. `retryAfter`: seconds until another try makes sense. */
export class RequestError extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const LOST = "The connection to the server is lost";

let askedKey = null;

/** Asks for the API key in a dialog; requests that wait for it share the dialog. */
function askForKey() {
  askedKey ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const wasRejected = load("sessionStorage", KEY, "") !== "";
    showLine(byId("key-error"), wasRejected ? "The server does not accept this key." : "");
    byId("key").value = "";
    byId("key-form").onsubmit = (event) => {
      if (/^[\x21-\x7e]+$/.test(byId("key").value.trim())) return;
      event.preventDefault();
      showLine(byId("key-error"), "A key has letters, digits and signs without accents only.");
    };
    dialog.addEventListener(
      "close",
      () => {
        askedKey = null;
        const key = dialog.returnValue === "use" ? byId("key").value.trim() : "";
        if (key) store("sessionStorage", KEY, key);
        resolve(key !== "");
      },
      { once: true },
    );
    dialog.showModal();
  });
  return askedKey;
}

/** The response of a request. Asks for the key if the server wants one. Throws RequestError. */
async function send(path, { body, signal } = {}) {
  for (;;) {
    const key = load("sessionStorage", KEY, "");
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (body) headers["Content-Type"] = "application/json";
    let response;
    try {
      const options = { headers, signal, body: body && JSON.stringify(body), method: body ? "POST" : "GET" };
      response = await fetch(path, { ...options, cache: "no-store", credentials: "omit" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new RequestError(`${LOST}.`, { retryAfter: 1 });
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await errorOf(response);
    if (!(await askForKey())) throw new RequestError("This server asks for an API key.", { status: 401 });
  }
}

async function errorOf(response) {
  const { status } = response;
  const text = await response.text().catch(() => "");
  const seconds = Number(response.headers.get("Retry-After")) || 2;
  const retryAfter = status === 429 || status === 503 ? Math.min(seconds, 30) : null;
  return new RequestError(sentence(messageOf(text) || `HTTP status ${status}`, status), { status, retryAfter });
}

function messageOf(text) {
  try {
    const { error } = JSON.parse(text);
    return String(error?.message ?? error ?? "");
  } catch {
    return "";
  }
}

function sentence(message, status) {
  const line = message.replace(/\s+/g, " ").trim().slice(0, 500);
  const stop = /[.!?…]$/.test(line) ? "" : ".";
  if (status === 429) return `The server is busy: ${line}${stop}`;
  if (status === 503) return `The server is not ready: ${line}${stop}`;
  return `${line.charAt(0).toUpperCase()}${line.slice(1)}${stop}`;
}

/** The JSON of a request. */
export async function request(path, body) {
  const response = await send(path, { body });
  try {
    return await response.json();
  } catch {
    throw new RequestError(`${LOST}.`, { retryAfter: 1 });
  }
}

/** Calls `attempt` until it succeeds. `onWait(line)` gets what is wrong while it waits for the next try. */
export async function withRetries(attempt, signal, onWait) {
  for (let tried = 1; ; tried++) {
    try {
      return await attempt();
    } catch (error) {
      if (signal.aborted || !(error instanceof RequestError)) throw error;
      if (error.retryAfter === null || tried === MAX_TRIES) throw error;
      const seconds = error.status ? error.retryAfter : Math.min(2 ** (tried - 1), 8);
      onWait(`${error.message} Trying again in ${seconds} s (${tried} of ${MAX_TRIES - 1}).`);
      await pause(seconds * 1000, signal);
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

/** Yields the chunks of a streamed chat completion. Throws RequestError if it ends before its end. */
export async function* streamCompletion(body, signal) {
  const response = await send("/v1/chat/completions", { body: { ...body, stream: true }, signal });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new RequestError("The server sent an event that is not JSON.");
    }
    if (chunk.error) throw new RequestError(sentence(String(chunk.error.message ?? "the server failed"), 500));
    yield chunk;
  }
  throw new RequestError(`${LOST}.`, { retryAfter: 1 });
}

/** The data of server-sent events. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new RequestError(`${LOST}.`, { retryAfter: 1 });
    }
    if (part.done) return;
    const lines = (rest + part.value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}
