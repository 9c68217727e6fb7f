// The request of a call as a curl command. What is pasted into a shell must do no more than it seems to: the body is
// ASCII without control characters, and quoted.

import { parsed } from "./conversation.js";

const PATHS = { responses: "/responses", embeddings: "/embeddings", text_completion: "/completions" };
const PARAMETERS = {
  "gen_ai.request.temperature": "temperature",
  "gen_ai.request.top_p": "top_p",
  "gen_ai.request.max_tokens": "max_tokens",
  "gen_ai.request.frequency_penalty": "frequency_penalty",
  "gen_ai.request.presence_penalty": "presence_penalty",
  "gen_ai.request.seed": "seed",
  "gen_ai.request.choice.count": "n",
  "gen_ai.request.stop_sequences": "stop",
  "gen_ai.request.stream": "stream",
};
const NOT_CAPTURED = "(content was not captured)";

export function curlOf(a) {
  const path = PATHS[a["openai.api.type"]] ?? PATHS[a["gen_ai.operation.name"]] ?? "/chat/completions";
  const body = { model: a["gen_ai.request.model"] ?? "" };
  const messages = messagesOf(a);
  if (path === "/chat/completions") body.messages = messages ?? [{ role: "user", content: NOT_CAPTURED }];
  else body[path === "/completions" ? "prompt" : "input"] = messages?.map((message) => message.content).join("\n") ?? NOT_CAPTURED;
  for (const [name, key] of Object.entries(PARAMETERS)) if (a[name] !== undefined) body[key] = a[name];
  return [
    `curl "\${OPENAI_BASE_URL:-https://api.openai.com/v1}${path}" \\`,
    `  -H "Authorization: Bearer $OPENAI_API_KEY" \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  -d ${quoted(ascii(JSON.stringify(body, null, 2)))}`,
  ].join("\n");
}

function messagesOf(a) {
  const system = parsed(a["gen_ai.system_instructions"]);
  const input = parsed(a["gen_ai.input.messages"]);
  if (!Array.isArray(input)) return null;
  return [...(Array.isArray(system) ? [{ role: "system", parts: system }] : []), ...input].map(asChat);
}

function asChat(message) {
  const parts = Array.isArray(message?.parts) ? message.parts : [];
  const text = parts.filter((part) => part?.type === "text").map((part) => part.content).join("\n");
  const calls = parts.filter((part) => part?.type === "tool_call");
  const answer = parts.find((part) => part?.type === "tool_call_response");
  if (answer) return { role: "tool", tool_call_id: answer.id, content: asText(answer.response) };
  const chat = { role: message?.role ?? "user", content: text };
  if (calls.length) {
    chat.tool_calls = calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: asText(call.arguments) } }));
  }
  return chat;
}

function asText(value) {
  return typeof value === "string" ? value : JSON.stringify(value ?? null);
}

function ascii(json) {
  return json.replace(/[^\x20-\x7e\n]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
