// Elements without markup: text from outside only ever becomes a text node, so no name and no
// payload can become a script.

/**
 * An element.
 * @param {string} tag `div`, or `div.class.other`
 * @param {Object<string, any>} [given] attributes; `on…` are listeners, `data` is the dataset
 * @param {...(Node|string|number|null|undefined|false)} children
 * @returns {any}
 */
export function h(tag, given = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "data") Object.assign(element.dataset, value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same within a drawing. */
export function svg(tag, given = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(given)) element.setAttribute(key, String(value));
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** Puts children in place of what is there. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

/** Writes a text only where it changes: an untouched node keeps a selection, and costs no layout. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets or removes an attribute, only where it changes. */
export function mark(element, name, value) {
  if (value === null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

// Controls, marks that turn the direction of writing, and what breaks lines or shows as nothing: in
// a name they make one event look like another.
// eslint-disable-next-line no-control-regex
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

/** The text with what cannot be seen written as an escape. */
export function visible(text) {
  return String(text).replace(INVISIBLE, (c) => {
    if (c === "\n") return "\\n";
    if (c === "\t") return "\\t";
    return `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

/** A text of some length at most. */
export function clip(text, length) {
  return text.length > length ? `${text.slice(0, length)}…` : text;
}

/** Tells those who listen to the page rather than look at it. */
export function announce(text) {
  byId("announce").textContent = text;
}

let toastTimer = 0;

/** Tells everybody, for a moment. */
export function toast(text) {
  const element = byId("toast");
  element.textContent = text;
  element.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (element.hidden = true), 3500);
}

/** To the clipboard, also where the page came over plain HTTP and the clipboard API is missing. */
export async function copy(text, what) {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyBySelection(text);
    toast(`${what} copied`);
  } catch {
    toast("The browser does not let this page copy");
  }
}

function copyBySelection(text) {
  const field = h("textarea.visually-hidden", { "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (!copied) throw new Error("not copied");
}
