// The list of traces, its filters, and the calls that are going on.

import { ask, on, query, soon } from "./api.js";
import { el, link, replace, say, visible } from "./dom.js";
import * as f from "./format.js";

const SLOWER = [
  ["", "any duration"],
  ["500", "over 0.5 s"],
  ["1000", "over 1 s"],
  ["5000", "over 5 s"],
  ["15000", "over 15 s"],
  ["60000", "over 1 min"],
];
const SELECTS = [
  ["model", "model"],
  ["operation", "operation"],
  ["outcome", "outcome"],
  ["error", "error"],
  ["session", "session"],
  ["service", "service"],
];
const COLUMNS = ["Started", "Trace", "Model", "Calls", "Tokens in + out", "First chunk", "Duration", "Cost", "Result"];
const REFRESH_MS = 700;

export async function showList({ main, signal, atEnd, go }) {
  const filters = Object.fromEntries(new URLSearchParams(location.search));
  const flights = el("section", { "aria-label": "Calls in flight", class: "flights" });
  const tiles = el("section", { class: "tiles", "aria-label": "The last 15 minutes" });
  const rows = el("tbody", { role: "rowgroup" });
  const note = el("p", { class: "note", role: "status" });
  const more = el("button", { type: "button", hidden: true }, "Show older ones");
  const totals = el("p", { class: "muted totals" });
  const form = el("form", { role: "search", class: "filters", "aria-label": "Filters" });
  replace(
    main,
    el("h1", { class: "hidden" }, "Calls"),
    tiles,
    flights,
    form,
    el(
      "table",
      { class: "traces", role: "table", "aria-label": "Traces, newest first" },
      el(
        "thead",
        { role: "rowgroup" },
        el("tr", { role: "row" }, COLUMNS.map((name) => el("th", { scope: "col", role: "columnheader" }, name))),
      ),
      rows,
    ),
    note,
    more,
    totals,
  );

  let next = null;
  let pages = 1;

  const load = async () => {
    const found = await ask(`/api/traces${query(filters)}`, signal);
    if (pages > 1) return showTotals(found.totals); // the reader is looking at older ones: leave the rows alone
    fill(found);
  };

  function fill(found, { appends = false } = {}) {
    const focused = document.activeElement?.dataset?.trace;
    const made = found.traces.map(traceRow);
    if (appends) rows.append(...made);
    else rows.replaceChildren(...made);
    if (focused) rows.querySelector(`[data-trace="${CSS.escape(focused)}"]`)?.focus();
    next = found.next;
    more.hidden = !next;
    more.textContent = found.searched_to_ms ? "Search on" : "Show older ones";
    const notes = [];
    if (!rows.children.length && !found.searched_to_ms) notes.push(emptyText(filters));
    if (found.searched_to_ms) notes.push(`Searched back to ${f.moment(found.searched_to_ms)}.`);
    note.textContent = notes.join(" ");
    showTotals(found.totals);
  }

  function showTotals(stored) {
    const parts = [`${f.plural(stored.traces, "trace")}, ${f.plural(stored.spans, "span")}, ${f.size(stored.bytes)} stored`];
    if (stored.evicted) parts.push(`${f.plural(stored.evicted, "older span")} removed to make room`);
    if (stored.refused) parts.push(`${f.plural(stored.refused, "span")} of full traces refused`);
    totals.textContent = parts.join(" · ");
  }

  more.addEventListener("click", async () => {
    const found = await ask(`/api/traces${query({ ...filters, before: next })}`, signal);
    pages += 1;
    fill(found, { appends: true });
    say(`${f.plural(found.traces.length, "trace")} more`);
  });

  buildForm(form, filters, await ask("/api/words", signal), (changed) => {
    const cleaned = Object.fromEntries(Object.entries(changed).filter(([, value]) => value));
    go(`/${query(cleaned)}`);
  });
  await load();
  showTiles(tiles, await ask("/api/figures?window=900", signal));
  watchFlights(flights, signal, atEnd);
  const refresh = () => Promise.all([load(), ask("/api/figures?window=900", signal).then((told) => showTiles(tiles, told))]);
  const refreshSoon = soon(refresh, REFRESH_MS);
  atEnd(on("stored", refreshSoon));
  atEnd(on("refresh", refreshSoon));
}

function emptyText(filters) {
  if (Object.keys(filters).length) return "No trace matches these filters.";
  return "Nothing has arrived yet. Point an OTLP exporter here: OTEL_EXPORTER_OTLP_ENDPOINT=" + location.origin;
}

function buildForm(form, filters, words, apply) {
  const text = el("input", { type: "search", id: "text", name: "text", placeholder: "Search text or trace id  ( / )", "aria-label": "Search text or trace id" });
  text.value = filters.text ?? "";
  const controls = SELECTS.map(([name, label]) => {
    const values = words[name === "error" ? "error_type" : name] ?? [];
    const options = [["", `any ${label}`], ...(name === "error" ? [["*", "all errors"]] : []), ...values.map((v) => [v, v])];
    if (filters[name] && !options.some(([value]) => value === filters[name])) options.push([filters[name], filters[name]]);
    return select(name, label, options, filters[name]);
  });
  const slower = select("slower_ms", "duration", SLOWER, filters.slower_ms);
  const clear = el("button", { type: "button", hidden: !Object.values(filters).some(Boolean), onclick: () => apply({}) }, "Clear");
  form.append(text, ...controls, slower, clear);
  const submit = () => apply(Object.fromEntries(new FormData(form)));
  form.addEventListener("change", (event) => event.target !== text && submit());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
}

function select(name, label, options, chosen) {
  const node = el("select", { name, "aria-label": label, class: chosen ? "chosen" : null });
  for (const [value, shown] of options) node.append(el("option", { value, selected: value === (chosen ?? "") }, visible(shown)));
  return node;
}

function traceRow(trace) {
  const cells = [
    el("time", { datetime: new Date(trace.started_ms).toISOString(), title: f.moment(trace.started_ms) }, f.time(trace.started_ms)),
    [
      link(`/trace/${encodeURIComponent(trace.trace_id)}`, { class: "row", "data-trace": trace.trace_id }, visible(trace.name) || "(no name)"),
      el("span", { class: "muted" }, " ", visible(trace.service)),
      trace.session && [" ", link(`/session/${encodeURIComponent(trace.session)}`, { class: "chip" }, visible(trace.session))],
    ],
    trace.models.map((model) => el("span", { class: "model" }, visible(model))),
    trace.calls ? f.count(trace.calls) : f.NONE,
    trace.input_tokens === null && trace.output_tokens === null
      ? f.NONE
      : `${f.count(trace.input_tokens)} + ${f.count(trace.output_tokens)}`,
    f.ms(trace.first_chunk_ms),
    f.ms(trace.duration_ms),
    f.usd(trace.cost_usd),
    result(trace),
  ];
  return el("tr", { role: "row" }, cells.map((cell, at) => el("td", { role: "cell", "data-label": COLUMNS[at] }, el("div", {}, cell))));
}

function result(trace) {
  const marks = [];
  if (trace.errors) marks.push(el("span", { class: "mark bad" }, f.plural(trace.errors, "error")));
  else marks.push(el("span", { class: "mark good" }, "ok"));
  if (trace.retries) marks.push(" ", el("span", { class: "mark warn" }, trace.retries === 1 ? "1 retry" : `${f.count(trace.retries)} retries`));
  return marks;
}

function showTiles(tiles, told) {
  const { totals } = told;
  const values = [
    ["Calls", f.count(totals.calls), totals.errors ? `${f.count(totals.errors)} failed` : "none failed"],
    ["Latency p50", f.ms(totals.latency.p50), `p95 ${f.ms(totals.latency.p95)}`],
    ["First chunk p50", f.ms(totals.first_chunk.p50), `p95 ${f.ms(totals.first_chunk.p95)}`],
    ["Tokens", f.short(sum(totals.input_tokens, totals.output_tokens)), `${f.short(totals.input_tokens)} in, ${f.short(totals.output_tokens)} out`],
    ["Cost", f.usd(totals.cost_usd), totals.cost_usd === null ? "no prices reported" : "as reported"],
  ];
  replace(
    tiles,
    values.map(([name, value, more]) =>
      el("div", { class: "tile" }, el("span", { class: "muted" }, name), el("strong", {}, value), el("span", { class: "muted" }, more)),
    ),
    el("p", { class: "muted tiles-note" }, "last 15 minutes"),
  );
}

function sum(left, right) {
  return left === null && right === null ? null : (left ?? 0) + (right ?? 0);
}

function watchFlights(section, signal, atEnd) {
  const cards = new Map();
  const title = el("h2", {}, "Going on now");
  section.append(title);

  const put = (call) => {
    let card = cards.get(call.call_id);
    if (!card) {
      card = flightCard();
      cards.set(call.call_id, card);
      title.after(card.node);
    }
    if (card.version > call.version) return; // this was on its way while a newer one overtook it
    card.version = call.version;
    card.show(call);
    section.hidden = false;
  };
  const reload = async () => {
    const { calls, version } = await ask("/api/live", signal);
    const there = new Set(calls.map((call) => call.call_id));
    for (const [id, card] of cards) {
      if (!there.has(id) && card.version <= version) {
        card.node.remove();
        cards.delete(id);
      }
    }
    calls.reverse().forEach(put);
    section.hidden = cards.size === 0;
  };
  section.hidden = true;
  reload().catch(() => null);
  atEnd(on("live", (calls) => calls.forEach(put)));
  atEnd(on("refresh", () => reload().catch(() => null)));
  const timer = setInterval(() => cards.forEach((card) => card.tick()), 200);
  atEnd(() => clearInterval(timer));
}

function flightCard() {
  const head = el("p", { class: "flight-head" });
  const facts = el("p", { class: "muted" });
  const prompt = el("p", { class: "flight-prompt" });
  const text = el("pre", { class: "flight-text" });
  const node = el("article", { class: "flight" }, head, facts, prompt, text);
  let call = null;
  const elapsed = () => f.ms(call.duration_ms ?? Math.max(0, Date.now() - call.started_ms));
  const tick = () => {
    if (call.is_over) return;
    head.querySelector(".elapsed").textContent = elapsed();
  };
  const show = (changed) => {
    call = changed;
    node.dataset.call = call.call_id;
    node.classList.toggle("over", call.is_over);
    const state = call.is_over ? (call.outcome ?? "ended") : call.chunks ? "streaming" : "waiting";
    const isBad = call.is_over && (call.outcome === "error" || call.outcome === "cancelled");
    replace(
      head,
      el("strong", {}, visible(`${call.operation ?? "call"} ${call.model ?? ""}`)),
      " ",
      el("span", { class: `mark ${isBad ? "bad" : call.is_over ? "good" : "now"}` }, visible(call.error_type ?? state)),
      " ",
      el("span", { class: "elapsed" }, elapsed()),
    );
    const parts = [];
    if (call.chunks) parts.push(f.plural(call.chunks, "chunk") + (call.is_partial ? " seen" : ""));
    if (call.first_chunk_ms !== undefined) parts.push(`first after ${f.ms(call.first_chunk_ms)}`);
    if (call.input_tokens !== undefined) parts.push(`${f.count(call.input_tokens)} + ${f.count(call.output_tokens)} tokens`);
    if (call.session_id) parts.push(`session ${call.session_id}`);
    if (call.process) parts.push(call.process);
    facts.textContent = visible(parts.join(" · "));
    prompt.textContent = call.prompt ? visible(call.prompt) : "";
    prompt.hidden = !call.prompt;
    text.textContent = call.text ? (call.cut || call.is_partial ? "… " : "") + visible(call.text) : "";
    text.hidden = !call.text;
    text.scrollTop = text.scrollHeight;
  };
  return { node, show, tick, version: 0 };
}
