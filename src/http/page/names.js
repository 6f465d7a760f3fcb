// The most frequent events of the span: one look tells what a database is busy with, and one press
// narrows to it.

import { h, fill, visible } from "./dom.js";
import * as format from "./format.js";

const SHOWN = 5;
/** A pointer that only passes by asks nothing of the database. */
const PASSING = 250;

/**
 * @param {HTMLElement} root
 * @param {{choose: (name: string) => void, look: (name: string|null) => void}} told
 */
export function names(root, told) {
  let timer = 0;
  const look = (name) => {
    clearTimeout(timer);
    timer = setTimeout(told.look, name === null ? 0 : PASSING, name);
  };

  function line({ value, count }, most) {
    const button = h("button", {
      type: "button", title: `Only ${visible(value)}`, data: { name: value },
      onclick: () => told.choose(value),
      onpointerenter: (event) => event.pointerType === "mouse" && look(value),
      onpointerleave: () => look(null), onfocus: () => look(value), onblur: () => look(null),
    }, h("span.name", {}, visible(value)), h("span.count", {}, format.compact(count)));
    button.style.setProperty("--part", String(count / most));
    return button;
  }

  return {
    /** @param {{value: string, count: number}[]} counts */
    show(counts) {
      const focused = root.contains(document.activeElement) ? document.activeElement.dataset.name : null;
      const sorted = [...counts].sort((a, b) => b.count - a.count);
      const top = sorted.slice(0, SHOWN);
      const rest = sorted.length - top.length;
      fill(root, ...top.map((one) => line(one, sorted[0].count)),
        h("p.rest", {}, rest > 0 ? `and ${format.number(rest)} more ${rest === 1 ? "kind" : "kinds"}` : sorted.length ? "" : "nothing in this span"));
      if (focused !== null) [...root.children].find((one) => one.dataset.name === focused)?.focus();
      return sorted;
    },
  };
}
