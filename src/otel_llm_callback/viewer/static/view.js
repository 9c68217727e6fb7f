// The frame of the page: which view is shown, the theme, the keyboard.

import { ask, listen } from "./api.js";
import { showCharts } from "./charts.js";
import { el, replace, say } from "./dom.js";
import { showList } from "./list.js";
import { showMetrics } from "./metrics.js";
import { showSession } from "./session.js";
import { showTrace } from "./trace.js";

const main = document.getElementById("main");
let leave = () => {};

const ROUTES = [
  [/^\/$/, "Calls", showList],
  [/^\/charts$/, "Charts", showCharts],
  [/^\/metrics$/, "Metrics", showMetrics],
  [/^\/trace\/([^/]+)$/, "Trace", showTrace],
  [/^\/session\/(.+)$/, "Session", showSession],
];

function show({ moves = true } = {}) {
  leave();
  const left = new AbortController();
  const endings = [() => left.abort()];
  leave = () => endings.forEach((end) => end());
  const route = ROUTES.map(([pattern, title, view]) => ({ found: location.pathname.match(pattern), title, view })).find(
    ({ found }) => found,
  );
  for (const anchor of document.querySelectorAll(".top nav a")) {
    const isHere = anchor.getAttribute("href") === location.pathname;
    if (isHere) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  replace(main);
  document.title = `${route?.title ?? "Nothing"} · Live view`;
  if (!route) {
    replace(main, el("h1", {}, "There is no such page"));
    return;
  }
  const place = { main, signal: left.signal, atEnd: (end) => endings.push(end), go };
  const shown = route.view(place, route.found[1] === undefined ? undefined : decodeURIComponent(route.found[1]));
  Promise.resolve(shown).catch((error) => {
    if (left.signal.aborted) return;
    replace(main, el("h1", {}, error.status === 404 ? "It is not stored" : "It could not be shown"), el("p", {}, error.message));
  });
  if (moves) {
    main.focus({ preventScroll: true });
    window.scrollTo(0, 0);
    say(route.title);
  }
}

export function go(path) {
  history.pushState(null, "", path);
  show();
}

document.addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[data-link]");
  if (!anchor || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(anchor.getAttribute("href"));
});
window.addEventListener("popstate", () => show());

const KEYS = [
  ["/", "go to the search"],
  ["j, k", "next or previous row"],
  ["Enter", "open the row"],
  ["↑ ↓ Home End", "move in the waterfall"],
  ["c, h", "calls, charts"],
  ["Esc", "back to the calls"],
  ["?", "this help"],
];

function showHelp() {
  const rows = KEYS.map(([key, what]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, key)), el("td", {}, what)));
  const dialog = el(
    "dialog",
    { "aria-labelledby": "help-title" },
    el("h2", { id: "help-title" }, "Keyboard"),
    el("table", {}, el("tbody", {}, rows)),
    el("form", { method: "dialog" }, el("button", {}, "Close")),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

function moveRow(by) {
  const links = [...main.querySelectorAll("tbody a.row")];
  if (!links.length) return;
  const at = links.indexOf(document.activeElement);
  links[Math.min(Math.max(at + by, 0), links.length - 1)].focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isTyping = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (isTyping) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const actions = {
    "/": () => document.getElementById("text")?.focus(),
    j: () => moveRow(1),
    k: () => moveRow(-1),
    c: () => go("/"),
    h: () => go("/charts"),
    "?": showHelp,
    Escape: () => location.pathname !== "/" && go("/"),
  };
  if (!Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  actions[event.key]();
});

document.getElementById("help").addEventListener("click", showHelp);
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {
    // it then lasts until the page is closed
  }
  document.dispatchEvent(new CustomEvent("theme"));
});

const state = document.getElementById("link");
await ask("/api/live").catch(() => null);
listen((text) => {
  state.textContent = text;
  state.classList.toggle("on", text === "live");
});
show({ moves: false });
