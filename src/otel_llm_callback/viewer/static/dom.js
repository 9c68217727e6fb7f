// The only way in which this page makes elements. Whatever comes from outside becomes a text node or a plain attribute:
// there is no innerHTML anywhere, and the content security policy would not let it through.

const BOOLEAN = new Set(["hidden", "disabled", "open", "selected", "checked"]);

/** Make an element. `on…` attributes take functions; null and undefined attributes and children are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (BOOLEAN.has(name)) node[name] = true;
    else node.setAttribute(name, String(value));
  }
  append(node, children);
  return node;
}

export function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export function replace(node, ...children) {
  node.replaceChildren();
  append(node, children);
}

/** A link within the page. The address is built from encoded pieces, never taken from data as it is. */
export function link(path, attributes, ...children) {
  return el("a", { href: path, "data-link": "", ...attributes }, ...children);
}

/** The head of a row; a row that goes on with the one before has none. */
export function rowHead(name) {
  return name ? el("th", { scope: "row" }, name) : el("td");
}

/** Tell a screen reader. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

export function copyButton(label, makeText) {
  const button = el("button", { type: "button", class: "small" }, label);
  button.addEventListener("click", async () => {
    const text = await makeText();
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      showText(label, text); // the clipboard is for secure origins and those who allow it
      return;
    }
    button.textContent = "Copied";
    say(`${label}: copied`);
    setTimeout(() => {
      button.textContent = label;
    }, 1500);
  });
  return button;
}

function showText(label, text) {
  const area = el("textarea", { rows: 12, readonly: "", "aria-label": label });
  area.value = text;
  const dialog = el("dialog", {}, el("h2", {}, label), area, el("form", { method: "dialog" }, el("button", {}, "Close")));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  area.select();
}

/** The direction marks and control characters of a text from outside, spelt out; line breaks and tabs stay. */
export function visible(text) {
  return String(text).replace(
    /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
