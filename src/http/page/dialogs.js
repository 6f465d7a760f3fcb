// What stands in front of everything: a question, the sign-in form, the keys.

import { h, fill } from "./dom.js";
import * as api from "./api.js";

/** @returns {HTMLDialogElement} */
function dialog(...children) {
  const element = h("dialog", { "aria-labelledby": "dialog-title" }, ...children);
  element.addEventListener("close", () => element.remove());
  document.body.append(element);
  element.showModal();
  return element;
}

/**
 * Asks before something that cannot be taken back. The way out has the focus.
 * @returns {Promise<boolean>}
 */
export function ask({ title, text, yes, danger = false }) {
  return new Promise((resolve) => {
    const no = h("button", { value: "no", autofocus: true }, "Cancel");
    const element = dialog(h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, title), h("p", {}, text),
      h("div.actions.end", {}, no, h(`button.${danger ? "danger" : "primary"}`, { value: "yes" }, yes))));
    element.addEventListener("close", () => resolve(element.returnValue === "yes"));
  });
}

let signing = null;

/** The form that a 401 brings up, once; resolves when it has worked. */
export function signIn() {
  signing ??= new Promise((resolve) => {
    const wrong = h("p.wrong", { role: "alert" });
    const user = h("input", { id: "user", name: "username", autocomplete: "username", autofocus: true });
    const password = h("input", { id: "password", name: "password", type: "password", autocomplete: "current-password" });
    const send = h("button.primary", { type: "submit" }, "Sign in");
    const form = h("form.sign-in", {
      onsubmit: async (event) => {
        event.preventDefault();
        send.disabled = true;
        try {
          await api.signIn(user.value, password.value);
          signing = null;
          element.close();
          resolve();
        } catch (error) {
          fill(wrong, error.status === 401 ? "These are not the user and password of this service." : `${error.message}.`);
          password.select();
        } finally {
          send.disabled = false;
        }
      },
    }, h("h2", { id: "dialog-title" }, "Sign in"), h("p.soft", {}, "This service has an auth string, of the form user:password."),
      h("label", { for: "user" }, "User"), user, h("label", { for: "password" }, "Password"), password, wrong, h("div.actions.end", {}, send));
    const element = dialog(form);
    // There is nothing behind it to go back to.
    element.addEventListener("cancel", (event) => event.preventDefault());
    element.addEventListener("close", () => {
      signing = null;
    });
  });
  return signing;
}

const KEYS = [
  ["/", "search"], ["j k", "next, previous row"], ["Enter", "open the row"], ["Esc", "close, let go, leave a field"], ["n", "newest, to the top"],
  ["l", "live on or off"], ["h", "to the histogram: ← → choose, Shift spans, Enter zooms"], ["-", "zoom out"], ["x", "clear the search"],
  ["1 2 3", "events, dead letters, service"], ["t", "dark or light"], ["?", "this"],
];

export function help() {
  if (document.querySelector("dialog")) return;
  dialog(h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, "Keys"),
    h("dl.keys", {}, ...KEYS.flatMap(([keys, what]) => [h("dt", {}, ...keys.split(" ").flatMap((key, i) => (i ? [" ", h("kbd", {}, key)] : [h("kbd", {}, key)]))), h("dd", {}, what)])),
    h("div.actions.end", {}, h("button.primary", { value: "ok", autofocus: true }, "Close"))));
}
