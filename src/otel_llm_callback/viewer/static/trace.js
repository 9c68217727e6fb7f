// One trace: the waterfall, and all that is known of the span that is chosen in it.

import { ask, on, soon } from "./api.js";
import { conversation } from "./conversation.js";
import { curlOf } from "./curl.js";
import { copyButton, el, link, replace, rowHead, visible } from "./dom.js";
import * as f from "./format.js";

const ROW = 30;
const SPARE = 12;
const REFRESH_MS = 700;
const MODEL_CALLS = new Set(["chat", "text_completion", "generate_content", "embeddings", "LLM", "completion"]);

export async function showTrace(place, traceId) {
  const { main, signal, atEnd } = place;
  let trace = await ask(`/api/traces/${encodeURIComponent(traceId)}`, signal);
  const facts = el("p", { class: "facts" });
  const detail = el("section", { class: "detail", "aria-label": "Span" });
  const waterfall = new Waterfall((span) => showSpan(detail, trace, span, signal));
  const title = el("h1");
  replace(
    main,
    el(
      "div",
      { class: "bar" },
      title,
      el("span", { class: "grow" }),
      copyButton("Copy trace id", () => traceId),
      copyButton("Copy as JSON", () => wholeTrace(trace, signal)),
    ),
    facts,
    el("div", { class: "split" }, waterfall.node, detail),
  );
  const describe = () => {
    title.textContent = visible(trace.name) || "(no name)";
    replace(facts, traceFacts(trace));
  };
  describe();
  waterfall.fill(trace);
  waterfall.choose(preferred(trace.span_list));
  atEnd(() => waterfall.remove());
  const reload = async () => {
    const found = await ask(`/api/traces/${encodeURIComponent(traceId)}`, signal);
    if (found.spans === trace.spans) return;
    trace = found;
    describe();
    waterfall.fill(trace);
  };
  atEnd(on("stored", soon(reload, REFRESH_MS)));
}

/** The call one most likely came for: the one named in the address, else the first that failed, else the first. */
function preferred(spans) {
  const named = new URLSearchParams(location.search).get("span");
  const calls = spans.filter((span) => MODEL_CALLS.has(span.operation));
  return spans.find((span) => span.id === named) ?? calls.find((span) => span.error) ?? calls[0] ?? spans[0];
}

function traceFacts(trace) {
  const parts = [
    f.moment(trace.started_ms),
    f.ms(trace.duration_ms),
    f.plural(trace.spans, "span"),
    trace.calls ? f.plural(trace.calls, "call") : null,
    trace.input_tokens === null ? null : `${f.count(trace.input_tokens)} + ${f.count(trace.output_tokens)} tokens`,
    trace.cost_usd === null ? null : f.usd(trace.cost_usd),
    trace.errors ? el("span", { class: "mark bad" }, f.plural(trace.errors, "error")) : null,
    trace.session ? link(`/session/${encodeURIComponent(trace.session)}`, { class: "chip" }, `session ${visible(trace.session)}`) : null,
    visible(trace.service),
  ];
  return parts.filter(Boolean).flatMap((part, at) => (at ? [" · ", part] : [part]));
}

async function wholeTrace(trace, signal) {
  const spans = [];
  for (const span of trace.span_list.slice(0, 500)) {
    spans.push(await ask(spanPath(trace.trace_id, span.id), signal));
  }
  const note = spans.length < trace.spans ? { note: `the first ${spans.length} of ${trace.spans} spans` } : {};
  return JSON.stringify({ trace_id: trace.trace_id, ...note, spans }, null, 2);
}

function spanPath(traceId, spanId) {
  return `/api/traces/${encodeURIComponent(traceId)}/spans/${encodeURIComponent(spanId)}`;
}

/** The spans as bars. Only the rows in sight are elements, so that ten thousand spans open at once. */
class Waterfall {
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.rows = [];
    this.chosen = null;
    this.space = el("div", { class: "wf-space", role: "presentation" });
    this.body = el("div", { class: "wf-body", role: "treegrid", "aria-label": "Waterfall", tabindex: "0" }, this.space);
    this.scale = el("div", { class: "wf-scale", "aria-hidden": "true" });
    this.node = el("section", { class: "waterfall", "aria-label": "Spans" }, this.scale, this.body);
    this.body.addEventListener("scroll", () => this.draw(), { passive: true });
    this.body.addEventListener("keydown", (event) => this.move(event));
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(this.body);
  }

  remove() {
    this.watcher.disconnect();
  }

  fill(trace) {
    this.total = Math.max(trace.duration_ms, 0.001);
    this.rows = inOrder(trace.span_list);
    this.body.setAttribute("aria-rowcount", String(this.rows.length));
    this.body.style.setProperty("--rows", String(this.rows.length));
    this.space.style.height = `${this.rows.length * ROW}px`;
    const steps = [0, 0.25, 0.5, 0.75, 1];
    replace(this.scale, steps.map((step) => el("span", {}, f.ms(this.total * step))));
    if (this.chosen) this.chosen = this.rows.find(({ span }) => span.id === this.chosen.span.id) ?? null;
    this.draw();
  }

  choose(span) {
    if (!span) return;
    const at = this.rows.findIndex((row) => row.span.id === span.id);
    this.chosen = this.rows[at] ?? null;
    const top = at * ROW;
    if (top < this.body.scrollTop || top + ROW > this.body.scrollTop + this.body.clientHeight) {
      this.body.scrollTop = Math.max(0, top - this.body.clientHeight / 2);
    }
    this.draw();
    this.onChoose(span);
  }

  move(event) {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const at = Math.max(0, this.rows.indexOf(this.chosen));
    const next = Math.min(Math.max(at + by, 0), this.rows.length - 1);
    this.choose(this.rows[next]?.span);
  }

  draw() {
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW) - SPARE);
    const last = Math.min(this.rows.length, Math.ceil((this.body.scrollTop + (this.body.clientHeight || 400)) / ROW) + SPARE);
    const made = [];
    for (let at = first; at < last; at += 1) made.push(this.row(this.rows[at], at));
    this.space.replaceChildren(...made);
    const chosenAt = this.rows.indexOf(this.chosen);
    if (chosenAt >= first && chosenAt < last) this.body.setAttribute("aria-activedescendant", `span-${this.chosen.span.id}`);
    else this.body.removeAttribute("aria-activedescendant");
  }

  row(row, at) {
    const { span, level } = row;
    const bar = el("span", { class: `wf-bar ${kindOf(span)}` });
    bar.style.left = `${this.share(span.at_ms)}%`;
    bar.style.width = `max(3px, ${Math.max(0, Math.min(this.share(span.ms), 100 - this.share(span.at_ms)))}%)`;
    const ticks = (span.events ?? []).map(([name, atMs]) => {
      const tick = el("span", { class: `wf-tick ${name === "exception" ? "bad" : ""}`, title: `${visible(name)} at ${f.ms(atMs)}` });
      tick.style.left = `${this.share(atMs)}%`;
      return tick;
    });
    const name = el("span", { class: "wf-name", role: "gridcell", title: visible(span.name) }, visible(span.name) || "(no name)");
    name.style.paddingInlineStart = `${Math.min(level, 12) * 14 + 8}px`;
    const said = [span.error ? `error ${span.error_type ?? ""}` : null, span.retries ? f.plural(span.retries, "retry").replace("retrys", "retries") : null].filter(Boolean);
    const node = el(
      "div",
      {
        role: "row",
        id: `span-${span.id}`,
        class: `wf-row${row === this.chosen ? " chosen" : ""}${span.error ? " failed" : ""}`,
        "aria-level": level + 1,
        "aria-rowindex": at + 1,
        "aria-selected": row === this.chosen ? "true" : "false",
      },
      name,
      el("span", { class: "wf-track", role: "gridcell", "aria-label": `starts at ${f.ms(span.at_ms)} ${said.join(" ")}` }, bar, ticks),
      el("span", { class: "wf-time", role: "gridcell" }, f.ms(span.ms)),
    );
    node.style.top = `${at * ROW}px`;
    node.addEventListener("click", () => this.choose(span));
    return node;
  }

  share(ms) {
    return Math.min(100, Math.max(0, (ms / this.total) * 100));
  }
}

function kindOf(span) {
  if (span.error) return "is-error";
  if (MODEL_CALLS.has(span.operation)) return "is-call";
  return span.operation ? "is-step" : "is-other";
}

/** Parents before their children, siblings by start; a span whose parent is not here stands at the top. */
function inOrder(spans) {
  const known = new Set(spans.map((span) => span.id));
  const children = new Map();
  for (const span of spans) {
    const parent = known.has(span.parent) && span.parent !== span.id ? span.parent : null;
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(span);
  }
  const rows = [];
  const seen = new Set();
  const walk = (tops) => {
    const stack = tops.toReversed().map((span) => ({ span, level: 0 }));
    while (stack.length) {
      const row = stack.pop();
      if (seen.has(row.span.id)) continue;
      seen.add(row.span.id);
      rows.push(row);
      for (const child of (children.get(row.span.id) ?? []).toReversed()) stack.push({ span: child, level: row.level + 1 });
    }
  };
  walk(children.get(null) ?? []);
  walk(spans.filter((span) => !seen.has(span.id))); // spans that are one another's parents
  return rows;
}

let wanted = null;

async function showSpan(section, trace, bar, signal) {
  wanted = bar.id;
  const path = spanPath(trace.trace_id, bar.id);
  let span;
  try {
    span = await ask(path, signal);
  } catch (error) {
    if (!signal.aborted) replace(section, el("p", { class: "note" }, error.message));
    return;
  }
  if (wanted !== bar.id) return; // another one was chosen meanwhile
  const a = span.attributes;
  const isCall = Object.keys(a).some((name) => name.startsWith("gen_ai.") || name.startsWith("llm."));
  replace(
    section,
    el(
      "div",
      { class: "bar" },
      el("h2", {}, visible(span.name) || "(no name)"),
      el("span", { class: "grow" }),
      copyButton("Copy as JSON", () => JSON.stringify(span, null, 2)),
      isCall && copyButton("Copy as curl", () => curlOf(a)),
    ),
    headline(span),
    isCall && conversation(a),
    isCall && tokens(a),
    isCall && factTable("Time", timeFacts(span)),
    factTable("Request", pick(a, REQUEST)),
    factTable("Response", pick(a, RESPONSE)),
    rateLimit(a),
    events(span),
    folded("All attributes", rowsOf(a)),
    folded("Resource and scope", rowsOf({ ...span.resource, ...(span.scope?.name ? { "scope.name": span.scope.name, "scope.version": span.scope.version } : {}) })),
    folded("Identity", rowsOf({ trace_id: span.trace_id, span_id: span.span_id, parent_id: span.parent_id ?? "none", kind: span.kind, links: span.links.map((one) => one.trace_id).join(" ") || "none" })),
  );
}

const REQUEST = {
  "gen_ai.provider.name": "Provider",
  "gen_ai.request.model": "Model",
  "server.address": "Server",
  "gen_ai.request.stream": "Streamed",
  "gen_ai.request.temperature": "Temperature",
  "gen_ai.request.top_p": "Top p",
  "gen_ai.request.max_tokens": "Max tokens",
  "gen_ai.request.seed": "Seed",
  "gen_ai.request.choice.count": "Choices",
  "gen_ai.request.stop_sequences": "Stop",
  "gen_ai.request.reasoning.level": "Reasoning",
  "gen_ai.output.type": "Output type",
  "openai.request.service_tier": "Service tier",
  "session.id": "Session",
  "user.id": "User",
};
const RESPONSE = {
  "gen_ai.response.model": "Model",
  "gen_ai.response.id": "Id",
  "gen_ai.response.finish_reasons": "Finish reasons",
  "llm_callback.outcome": "Outcome",
  "llm_callback.truncated": "Truncated",
  "error.type": "Error",
  "http.response.status_code": "HTTP status",
  "llm_callback.request_id": "Request id",
  "openai.response.service_tier": "Service tier",
  "openai.response.system_fingerprint": "Fingerprint",
  "llm_callback.usage.source": "Usage is",
};

function pick(attributes, names) {
  return Object.entries(names)
    .filter(([name]) => attributes[name] !== undefined && attributes[name] !== null)
    .map(([name, label]) => [label, name === "server.address" ? `${attributes[name]}:${attributes["server.port"] ?? ""}` : attributes[name]]);
}

function headline(span) {
  const a = span.attributes;
  const outcome = a["llm_callback.outcome"] ?? (span.status === "error" ? "error" : null);
  const isBad = span.status === "error";
  const cost = a["llm_callback.cost"] ?? a["gen_ai.usage.cost"];
  return el(
    "p",
    { class: "facts" },
    outcome && el("span", { class: `mark ${isBad ? "bad" : outcome === "completed" ? "good" : "warn"}` }, visible(a["error.type"] ?? outcome)),
    " ",
    f.ms(span.duration_ms),
    span.status_message && [" · ", visible(span.status_message)],
    cost !== undefined && [" · ", f.usd(Number(cost))],
  );
}

function timeFacts(span) {
  const a = span.attributes;
  const s = (name) => (typeof a[name] === "number" ? f.ms(a[name] * 1000) : null);
  return [
    ["Started", f.moment(span.started_ms)],
    ["Duration", f.ms(span.duration_ms)],
    ["First chunk after", s("gen_ai.response.time_to_first_chunk")],
    ["First output after", s("llm_callback.time_to_first_output")],
    ["Chunks", a["llm_callback.chunk.count"]],
    ["Longest gap", s("llm_callback.chunk.longest_gap")],
    ["Retries", a["llm_callback.retry.count"]],
    ["Waited between them", s("llm_callback.retry.wait")],
    ["Server's own time", s("llm_callback.processing_time")],
  ].filter(([, value]) => value !== null && value !== undefined);
}

/** Cached tokens are part of the input, reasoning tokens part of the output: a bar of four parts, never a sum of six. */
function tokens(a) {
  const value = (...names) => names.map((name) => a[name]).find((found) => typeof found === "number");
  const input = value("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt");
  const output = value("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion");
  if (input === undefined && output === undefined) return factTable("Tokens", [["", "not reported"]]);
  const cached = value("gen_ai.usage.cache_read.input_tokens");
  const written = value("gen_ai.usage.cache_creation.input_tokens");
  const reasoning = value("gen_ai.usage.reasoning.output_tokens");
  const parts = [
    ["cached", cached ?? 0, "p-cached"],
    ["input", Math.max(0, (input ?? 0) - (cached ?? 0)), "p-input"],
    ["reasoning", reasoning ?? 0, "p-reasoning"],
    ["output", Math.max(0, (output ?? 0) - (reasoning ?? 0)), "p-output"],
  ];
  const total = parts.reduce((sum, [, n]) => sum + n, 0) || 1;
  const bar = el("div", { class: "parts", "aria-hidden": "true" }, parts.filter(([, n]) => n).map(([name, n, kind]) => {
    const part = el("span", { class: kind, title: `${name} ${f.count(n)}` });
    part.style.flexGrow = String(n / total);
    return part;
  }));
  const rows = [
    ["Input", input === undefined ? f.NONE : f.count(input) + (cached === undefined ? "" : `, of which ${f.count(cached)} cached`) + (written === undefined ? "" : `, ${f.count(written)} written to the cache`)],
    ["Output", output === undefined ? f.NONE : f.count(output) + (reasoning === undefined ? "" : `, of which ${f.count(reasoning)} reasoning`)],
  ];
  const table = factTable("Tokens", rows);
  table.querySelector("h3").after(bar);
  return table;
}

function rateLimit(a) {
  const rows = [];
  for (const kind of ["requests", "tokens"]) {
    const remaining = a[`llm_callback.rate_limit.${kind}.remaining`];
    const limit = a[`llm_callback.rate_limit.${kind}.limit`];
    if (remaining === undefined && limit === undefined) continue;
    const meter = limit ? el("meter", { min: 0, max: limit, low: limit * 0.1, optimum: limit, value: remaining ?? 0, "aria-label": `${kind} left` }) : null;
    const reset = a[`llm_callback.rate_limit.${kind}.reset`];
    rows.push([kind === "requests" ? "Requests" : "Tokens", [`${f.count(remaining)} of ${f.count(limit)} left `, meter, reset === undefined ? "" : ` full again in ${f.ms(reset * 1000)}`]]);
  }
  return factTable("Rate limit", rows);
}

function events(span) {
  if (!span.events.length) return null;
  const rows = span.events.map((event) =>
    el("tr", {}, el("td", { class: "number" }, f.ms(event.at_ms)), el("td", {}, visible(event.name)), el("td", {}, Object.entries(event.attributes).map(([name, value]) => el("span", { class: "chip" }, visible(`${name} ${text(value)}`))))),
  );
  return el("section", {}, el("h3", {}, "Events"), el("table", { class: "facts-table" }, el("thead", { class: "hidden" }, el("tr", {}, ["At", "Event", "Attributes"].map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows)));
}

function factTable(title, rows) {
  if (!rows.length) return null;
  return el("section", {}, el("h3", {}, title), el("table", { class: "facts-table", "aria-label": title }, el("tbody", {}, rows.map(([name, value]) => el("tr", {}, rowHead(name), el("td", {}, isNode(value) ? value : visible(text(value))))))));
}

function isNode(value) {
  return Array.isArray(value) && value.some((part) => part instanceof Node);
}

function rowsOf(told) {
  return Object.entries(told).sort(([left], [right]) => (left < right ? -1 : 1));
}

function folded(title, rows) {
  if (!rows.length) return null;
  return el("details", {}, el("summary", {}, title), el("table", { class: "facts-table wide" }, el("tbody", {}, rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, visible(name))), el("td", {}, el("pre", {}, visible(text(value)))))))));
}

function text(value) {
  if (typeof value === "string") return value;
  if (Array.isArray(value) && value.every((item) => typeof item !== "object")) return value.join(", ");
  return typeof value === "object" && value !== null ? JSON.stringify(value, null, 2) : String(value);
}
