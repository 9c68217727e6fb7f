// What the page asks of the viewer, and what the viewer tells it unasked.

import { el } from "./dom.js";

export class Failure extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** Ask for JSON. Where a token is needed, ask for that first. */
export async function ask(path, signal) {
  for (;;) {
    const response = await fetch(path, { headers: { accept: "application/json" }, signal, credentials: "same-origin" });
    if (response.status === 401) {
      await logIn();
      continue;
    }
    if (!response.ok) throw new Failure(response.status, (await response.text()).trim());
    return response.json();
  }
}

export function query(values) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) if (value) parameters.set(name, value);
  const text = parameters.toString();
  return text ? `?${text}` : "";
}

let asking = null;

function logIn() {
  asking ??= askForToken().finally(() => {
    asking = null;
  });
  return asking;
}

/** A token may stand in the fragment, which is never sent; it is taken out of the address at once. */
async function askForToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    history.replaceState(history.state, "", location.pathname + location.search);
    if (await present(given)) return;
  }
  const input = el("input", { type: "password", id: "token", autocomplete: "off", required: "" });
  const wrong = el("p", { class: "bad", role: "alert" });
  const form = el("form", {}, el("label", { for: "token" }, "Token"), input, el("button", {}, "Show"), wrong);
  const dialog = el("dialog", {}, el("h2", {}, "A token is needed"), form);
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  document.body.append(dialog);
  dialog.showModal();
  await new Promise((resolve) => {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (await present(input.value)) resolve();
      else wrong.textContent = "That is not the token.";
    });
  });
  dialog.remove();
}

async function present(token) {
  const response = await fetch("/api/login", { method: "POST", body: JSON.stringify({ token }) });
  return response.ok;
}

/** Make a function that has `action` run soon, once for many calls, and never beside itself: answers keep their order. */
export function soon(action, pause) {
  let timer = null;
  let isRunning = false;
  let isWanted = false;
  const run = async () => {
    timer = null;
    isRunning = true;
    isWanted = false;
    await action().catch(() => null); // the next event tries again
    isRunning = false;
    if (isWanted) start();
  };
  const start = () => {
    isWanted = true;
    if (!isRunning) timer ??= setTimeout(run, pause);
  };
  return start;
}

const listeners = new Map();

/** Have `listener` told of an event until the returned function is called. */
export function on(event, listener) {
  const all = listeners.get(event) ?? new Set();
  listeners.set(event, all.add(listener));
  return () => all.delete(listener);
}

function tell(event, told) {
  for (const listener of listeners.get(event) ?? []) listener(told);
}

/** Listen for as long as the page is open; a stream that breaks is opened again. */
export function listen(showState) {
  const source = new EventSource("/api/events");
  source.addEventListener("hello", () => {
    showState("live");
    tell("refresh", {});
  });
  for (const event of ["stored", "live", "refresh"]) {
    source.addEventListener(event, (message) => tell(event, JSON.parse(message.data)));
  }
  source.addEventListener("error", () => {
    showState("not connected");
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(async () => {
      await ask("/api/live").catch(() => null); // asks for the token if that is what is missing
      listen(showState);
    }, 2000);
  });
}
