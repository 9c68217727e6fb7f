// What was said, where content is switched on: system instructions, messages in and out, tools.

import { el, visible } from "./dom.js";

const LONG = 4000;
const SHOWN_MESSAGES = 60;

/** Read an attribute that may be JSON text, as spans carry it, or structured already. */
export function parsed(value) {
  if (typeof value !== "string") return value ?? null;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

export function conversation(attributes) {
  const system = parsed(attributes["gen_ai.system_instructions"]);
  const input = asList(parsed(attributes["gen_ai.input.messages"]));
  const output = asList(parsed(attributes["gen_ai.output.messages"]));
  const tools = asList(parsed(attributes["gen_ai.tool.definitions"]));
  const used = toolSpan(attributes);
  if (!system && !input.length && !output.length && !tools.length && !used.length) return null;
  const messages = [...(system ? [{ role: "system", parts: asList(system) }] : []), ...input];
  const early = messages.slice(0, Math.max(0, messages.length - SHOWN_MESSAGES));
  return el(
    "section",
    { class: "conversation", "aria-label": "Conversation" },
    el("h3", {}, "Conversation"),
    tools.length ? el("details", {}, el("summary", {}, `Tools: ${visible(tools.map(toolName).join(", "))}`), el("pre", {}, visible(JSON.stringify(tools, null, 2)))) : null,
    early.length ? lazily(`${early.length} earlier messages`, () => early.map((message) => bubble(message, "in"))) : null,
    messages.slice(early.length).map((message) => bubble(message, "in")),
    used,
    output.map((message) => bubble(message, "out")),
  );
}

function asList(value) {
  if (value === null || value === undefined) return [];
  return Array.isArray(value) ? value : [value];
}

function lazily(title, make) {
  const details = el("details", {}, el("summary", {}, title));
  details.addEventListener("toggle", () => details.children.length === 1 && details.append(...make()), { once: true });
  return details;
}

function toolName(tool) {
  return String(tool?.name ?? tool?.function?.name ?? tool?.type ?? "tool");
}

function toolSpan(a) {
  const rows = [
    ["arguments", a["gen_ai.tool.call.arguments"]],
    ["result", a["gen_ai.tool.call.result"]],
  ].filter(([, value]) => value !== undefined);
  return rows.map(([name, value]) => message("tool", `${visible(a["gen_ai.tool.name"] ?? "tool")} ${name}`, [code(value)], "in"));
}

function bubble(told, way) {
  if (typeof told !== "object" || told === null) return message("message", "message", [text(told)], way);
  const role = String(told.role ?? "message");
  const parts = asList(told.parts ?? told.content).map(part);
  const ending = told.finish_reason ? el("span", { class: "muted" }, ` ${visible(told.finish_reason)}`) : null;
  return message(role, [visible(role), told.name ? ` ${visible(told.name)}` : "", ending], parts, way);
}

function message(role, title, parts, way) {
  const kind = ["system", "user", "assistant", "tool"].includes(role) ? role : "other";
  return el("article", { class: `message ${kind} ${way}` }, el("h4", {}, title), parts);
}

function part(told) {
  if (typeof told !== "object" || told === null) return text(told);
  switch (told.type) {
    case "text":
      return text(told.content ?? told.text ?? "");
    case "reasoning":
      return el("div", { class: "reasoning" }, el("span", { class: "muted" }, "reasoning"), text(told.content ?? ""));
    case "refusal":
      return el("div", { class: "reasoning" }, el("span", { class: "muted" }, "refusal"), text(told.content ?? ""));
    case "tool_call":
      return el("div", { class: "tool-call" }, el("span", { class: "muted" }, "tool call "), el("code", {}, visible(told.name ?? "")), code(told.arguments));
    case "tool_call_response":
      return el("div", { class: "tool-call" }, el("span", { class: "muted" }, "tool result"), code(told.response ?? told.result ?? told.content));
    default: {
      const { type, ...rest } = told;
      return el("div", { class: "tool-call" }, el("span", { class: "muted" }, visible(type ?? "part")), code(rest));
    }
  }
}

function code(value) {
  const found = parsed(value);
  if (found === null || found === undefined) return null;
  return text(typeof found === "string" ? found : JSON.stringify(found, null, 2), "code");
}

function text(value, kind = "prose") {
  const shown = visible(typeof value === "string" ? value : JSON.stringify(value));
  if (shown.length <= LONG) return el("pre", { class: kind }, shown);
  const pre = el("pre", { class: kind }, `${shown.slice(0, LONG)}…`);
  const more = el("button", { type: "button", class: "small" }, `Show all ${shown.length.toLocaleString("en")} characters`);
  more.addEventListener("click", () => {
    pre.textContent = shown;
    more.remove();
  });
  return el("div", {}, pre, more);
}
