// A session, as the terminal prints its summary.

import { ask, on, soon } from "./api.js";
import { copyButton, el, link, replace, rowHead, visible } from "./dom.js";

const REFRESH_MS = 1000;

export async function showSession({ main, signal, atEnd }, session) {
  const body = el("tbody");
  const note = el("p", { class: "note" });
  let text = "";
  replace(
    main,
    el("h1", {}, "Session ", visible(session)),
    el("p", { class: "bar" }, link(`/?${new URLSearchParams({ session })}`, { class: "button" }, "Its traces"), copyButton("Copy summary", () => text)),
    el("table", { class: "summary", "aria-label": "Session summary" }, body),
    note,
  );
  const load = async () => {
    const told = await ask(`/api/sessions/${encodeURIComponent(session)}`, signal);
    text = told.text;
    replace(body, told.rows.map(([name, value]) => el("tr", {}, rowHead(visible(name)), el("td", {}, visible(value)))));
    note.textContent = told.is_whole ? "" : "Made of the newest 10,000 calls.";
  };
  await load();
  atEnd(on("stored", soon(load, REFRESH_MS)));
}
