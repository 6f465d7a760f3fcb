// A JSON value as a tree that opens. What is closed has no elements yet, long lists come in pieces and
// long texts are cut, so a megabyte opens as fast as a line.

import { h, visible } from "./dom.js";
import * as format from "./format.js";

const PIECE = 100;
const LONGEST = 2000;
/** Opened by itself while the whole stays this small. */
const SMALL = 40;

/** @returns {HTMLElement} */
export function tree(value) {
  return h("div.json", {}, node(null, value, { open: SMALL }));
}

function node(key, value, budget) {
  const name = key === null ? null : typeof key === "number" ? h("span.k.i", {}, key) : h("span.k", {}, visible(key));
  const colon = name && h("span.p", {}, ": ");
  if (JSON.isRawJSON?.(value)) return h("div.leaf-line", {}, name, colon, h("span.number", {}, value.rawJSON));
  if (value === null || typeof value !== "object") return h("div.leaf-line", {}, name, colon, leaf(value));
  return branch(name, colon, value, budget);
}

function leaf(value) {
  if (typeof value !== "string") return h(`span.${value === null ? "null" : typeof value}`, {}, String(value));
  const text = h("span.string", {}, `"${visible(value.slice(0, LONGEST))}`);
  if (value.length <= LONGEST) {
    text.append('"');
    return text;
  }
  const rest = h("button.quiet.rest", {
    type: "button",
    onclick: () => {
      text.textContent = `"${visible(value)}"`;
    },
  }, `… all ${format.number(value.length)} characters`);
  text.append(rest);
  return text;
}

function branch(name, colon, value, budget) {
  const isList = Array.isArray(value);
  const keys = isList ? null : Object.keys(value);
  const size = isList ? value.length : keys.length;
  const [left, right] = isList ? "[]" : "{}";
  if (size === 0) return h("div.leaf-line", {}, name, colon, h("span.p", {}, left + right));
  const count = `${format.number(size)} ${isList ? (size === 1 ? "item" : "items") : size === 1 ? "key" : "keys"}`;
  const inside = h("div.inside");
  const element = h("details", {}, h("summary", {}, name, colon, h("span.p", {}, left), h("span.size", {}, count), h("span.p.closing", {}, right)),
    inside, h("div.p.close-line", {}, right));

  function piece(from) {
    const to = Math.min(size, from + PIECE);
    for (let i = from; i < to; i += 1) {
      inside.append(isList ? node(i, value[i], budget) : node(keys[i], value[keys[i]], budget));
    }
    if (to === size) return;
    const more = h("button.quiet.rest", {
      type: "button",
      onclick: () => {
        more.remove();
        piece(to);
        // The next of the pieces takes the focus that the button had.
        inside.children[to]?.querySelector("summary, button")?.focus();
      },
    }, `… ${format.number(size - to)} more`);
    inside.append(more);
  }

  const build = () => inside.childElementCount || piece(0);
  element.addEventListener("toggle", () => element.open && build());
  if (budget.open >= size) {
    budget.open -= size;
    build();
    element.open = true;
  }
  return element;
}
