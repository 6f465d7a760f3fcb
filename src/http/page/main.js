// The page: which view, how the service is, which keys.

import { h, byId, fill, say, mark, visible, announce, toast } from "./dom.js";
import * as api from "./api.js";
import * as address from "./address.js";
import { flow } from "./flow.js";
import { events } from "./events.js";
import { letters } from "./letters.js";
import { service } from "./service.js";
import { help, signIn } from "./dialogs.js";

const LOOK_EVERY = 2000;
/** Rates need two looks. */
const FIRST_LOOK_AGAIN = 700;
/** While nobody looks. */
const HIDDEN_EVERY = 30000;
const LOOK_AT_MOST = 10000;

const way = flow(byId("flow"));
const views = { events: events(), letters: letters(byId("view-letters"), { changed: look }), service: service(byId("view-service")) };
let view = "";
let failures = 0;
let lookTimer = 0;
let lastLook = 0;

/* Which view. */

function show() {
  const chosen = address.read();
  if (chosen.view !== view) {
    view = chosen.view;
    document.body.dataset.view = view;
    for (const name of ["events", "letters", "service"]) {
      byId(`view-${name}`).hidden = name !== view;
      mark(byId(`tab-${name}`), "aria-current", name === view ? "page" : null);
    }
    if (view === "letters") views.letters.show();
    if (view === "service" && known) views.service.show(known);
  }
  views.events.show(chosen);
}

/* How the service is. */

/** @type {any} */
let known = null;

async function look() {
  clearTimeout(lookTimer);
  const isFirst = !known;
  try {
    known = await api.status();
    if (failures) back();
    failures = 0;
    tell(known);
  } catch (error) {
    failures += 1;
    if (error.status === 401) state("starting", "Signed out");
    // It answers, and says why it tells nothing.
    else if (error.status) {
      state("failing", "Refused");
      notice([{ tone: "bad", title: "The service does not tell how it is", what: error.message, remedy: null }]);
    }
    // One look that fails is a blink; nobody has to be told.
    else if (failures > 1 || !known) state("lost", "Connection lost, trying again");
    way.stale(failures > 1);
  }
  lastLook = Date.now();
  const wait = failures ? Math.min(LOOK_EVERY * 1.5 ** failures, LOOK_AT_MOST) : document.hidden ? HIDDEN_EVERY : isFirst ? FIRST_LOOK_AGAIN : LOOK_EVERY;
  lookTimer = setTimeout(look, wait);
}

function back() {
  way.stale(false);
  if (failures < 2) return;
  announce("Connected again");
  views.events.again();
}

function state(name, text) {
  mark(byId("state"), "data-state", name);
  say(byId("state-text"), text);
}

function tell(said) {
  const { pipeline } = said;
  if (!pipeline.ready) state("failing", pipeline.draining ? "Stopping" : "Not ready");
  else if (pipeline.degraded) state("degraded", "Degraded");
  else if (said.warnings.length) state("warning", said.warnings.length === 1 ? "Ready, 1 warning" : `Ready, ${said.warnings.length} warnings`);
  else state("ready", "Ready");
  notices(said);
  way.show(said);
  views.events.know(said);
  const dead = said.flow.dead_letters.num;
  const badge = byId("letters-badge");
  mark(badge, "data-none", dead ? null : "");
  say(badge, dead === null ? "–" : dead > 999 ? "999+" : String(dead));
  mark(badge, "aria-label", dead === null ? "not known now" : `${dead} of them`);
  if (view === "letters") views.letters.count(dead);
  if (view === "service") views.service.show(said);
  byId("sign-out").hidden = !said.service.has_session;
  document.title = `${pipeline.ready ? "" : "! "}event-persister`;
}

let noticed = "";

/** What somebody has to look at, and what to do about it. */
function notices({ pipeline, warnings }) {
  const shown = [];
  if (!pipeline.ready) shown.push({ tone: "bad", title: "Events that are sent now are not stored", what: pipeline.reason ?? "it has not said why", remedy: null });
  if (pipeline.degraded) shown.push({ tone: "odd", title: "An event is held up", what: pipeline.degraded, remedy: null });
  for (const { what, remedy } of warnings) shown.push({ tone: "odd", title: "Warning", what, remedy });
  notice(shown);
}

function notice(shown) {
  const text = JSON.stringify(shown);
  if (text === noticed) return;
  noticed = text;
  fill(byId("notices"), ...shown.map(({ tone, title, what, remedy }) =>
    h(`div.notice.${tone}`, {}, h("strong", {}, title), h("span", {}, visible(what)), remedy && h("span.remedy", {}, "→ ", visible(remedy)))));
}

/* Signing in and out. */

api.connection.addEventListener("unauthorized", async () => {
  await signIn();
  toast("Signed in");
  failures = 0;
  await look();
  views.events.again();
  if (view === "letters") views.letters.show();
});

byId("sign-out").addEventListener("click", async () => {
  await api.signOut().catch(() => null);
  location.reload();
});

/* Dark or light. */

function turnTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const next = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  // The system's own choice is not kept: it may change by itself.
  if (next === system) delete root.dataset.theme;
  else root.dataset.theme = next;
  try {
    if (next === system) localStorage.removeItem("event-persister.theme");
    else localStorage.setItem("event-persister.theme", next);
  } catch {
    // Then it holds until the page is left.
  }
  announce(`${next} theme`);
}

byId("theme").addEventListener("click", turnTheme);
byId("help").addEventListener("click", help);

/* Keys. */

const TYPES = "input:not([type=checkbox]), textarea, select";

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog")) return;
  const { key, target } = event;
  if (target instanceof Element && target.matches(TYPES)) {
    if (key === "Escape") target.blur();
    return;
  }
  // A button or link that has the focus is pressed.
  if (key === "Enter" && target instanceof Element && target.closest("button, a, summary")) return;
  const views_ = { 1: "events", 2: "letters", 3: "service" };
  if (key === "?") help();
  else if (key === "t") turnTheme();
  else if (key in views_) address.go({ view: views_[key] });
  else if (view !== "events" || !views.events.key(key)) return;
  event.preventDefault();
});

addEventListener("hashchange", show);
document.addEventListener("visibilitychange", () => !document.hidden && Date.now() - lastLook > LOOK_EVERY && look());
// The tabs keep what was searched.
for (const name of ["events", "letters", "service"]) {
  byId(`tab-${name}`).addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    address.go({ view: name, id: "" });
  });
}
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});

show();
look();
