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

  let kinds = [];

  function others() {
    const rest = kinds.length - root.querySelectorAll("[data-name]").length;
    if (rest > 0) return `and ${format.number(rest)} more ${rest === 1 ? "kind" : "kinds"}`;
    return kinds.length ? "" : "nothing in this span";
  }

  return {
    /** @param {{value: string, count: number}[]} counts */
    show(counts) {
      const focused = root.contains(document.activeElement) ? document.activeElement.dataset.name : null;
      kinds = counts.map((one) => ({ ...one })).sort((a, b) => b.count - a.count);
      fill(root, ...kinds.slice(0, SHOWN).map((one) => line(one, kinds[0].count)), h("p.rest"));
      root.querySelector(".rest").textContent = others();
      if (focused !== null) [...root.children].find((one) => one.dataset.name === focused)?.focus();
      return kinds;
    },

    /** It is not known which they are. */
    clear() {
      kinds = [];
      fill(root);
    },

    /**
     * Counts events that have come. No line comes, goes or moves before all are counted anew.
     * @param {string[]} came their names
     */
    add(came) {
      const rest = root.querySelector(".rest");
      if (!rest) return;
      for (const value of came) {
        const known = kinds.find((one) => one.value === value);
        if (known) known.count += 1;
        else kinds.push({ value, count: 1 });
      }
      const most = Math.max(...kinds.map(({ count }) => count));
      for (const button of root.querySelectorAll("[data-name]")) {
        const { count } = kinds.find((one) => one.value === button.dataset.name);
        button.querySelector(".count").textContent = format.compact(count);
        button.style.setProperty("--part", String(count / most));
      }
      rest.textContent = others();
    },
  };
}
