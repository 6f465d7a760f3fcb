// One event, whole: what it says about itself, what it is about, what it belongs to, its payload.

import { h, fill, visible, copy, announce } from "./dom.js";
import * as format from "./format.js";
import * as api from "./api.js";
import { write, read } from "./address.js";
import { tree } from "./json.js";

const LABELS = 12;
const RELATED = 20;
const ID = "prefect.resource.id";
const NAME = "prefect.resource.name";
const ROLE = "prefect.resource.role";

/**
 * @param {HTMLElement} root
 * @param {{close: () => void, move: (by: number) => void}} told
 */
export function detail(root, told) {
  let asked = null;
  let shown = "";

  function frame(title, ...rest) {
    const close = h("button.icon", { type: "button", "aria-label": "Close", title: "Close  Esc", onclick: told.close }, "✕");
    const up = h("button.icon", { type: "button", "aria-label": "Event above", title: "Above  k", onclick: () => told.move(-1) }, "↑");
    const down = h("button.icon", { type: "button", "aria-label": "Event below", title: "Below  j", onclick: () => told.move(1) }, "↓");
    fill(root, h("div.detail-head", {}, title, h("div.tools", {}, up, down, close)), h("div.detail-body", { tabindex: 0, role: "region", "aria-label": "What the event holds" }, ...rest));
  }

  function draw(event, now) {
    const at = Date.parse(event.occurred);
    const text = () => JSON.stringify(event, null, 2);
    frame(h("h2", { title: visible(event.event) }, visible(event.event)),
      h("dl.facts", {},
        h("dt", {}, "Occurred"), h("dd", {}, h("time", { datetime: event.occurred, title: format.utc(event.occurred) }, format.date(at), " ", format.time(at)),
          h("span.soft", {}, ` ${format.ago(at, now)}`), h("div.soft", {}, format.utc(event.occurred))),
        event.received && h("dt", {}, "Received"), event.received && h("dd", { title: format.utc(event.received) }, late(at, Date.parse(event.received))),
        h("dt", {}, "Id"), h("dd.mono", {}, event.id),
        event.follows && h("dt", {}, "Follows"), event.follows && h("dd.mono", {}, link({ id: event.follows }, event.follows))),
      h("div.actions", {},
        h("button", { type: "button", onclick: () => copy(text(), "JSON") }, "Copy JSON"),
        h("button", { type: "button", onclick: () => copy(event.id, "Id") }, "Copy id"),
        h("button", { type: "button", onclick: () => copy(location.href, "Link") }, "Copy link")),
      h("h3", {}, "Resource"), labels(event.resource ?? {}),
      event.related?.length ? h("h3", {}, "Related ", h("span.soft", {}, format.number(event.related.length))) : null,
      event.related?.length ? related(event.related) : null,
      h("h3", {}, "Payload"),
      Object.keys(event.payload ?? {}).length ? tree(event.payload) : h("p.soft", {}, "empty"));
  }

  return {
    /** Fetches and shows it. */
    async show(id) {
      if (id === shown) return;
      shown = id;
      asked?.abort();
      if (!id) {
        root.hidden = true;
        root.replaceChildren();
        return;
      }
      asked = new AbortController();
      if (root.hidden) frame(h("h2", {}, "…"));
      root.hidden = false;
      try {
        const event = await api.oneEvent(id, asked.signal);
        draw(event, Date.now());
        announce(`Event ${event.event} opened`);
      } catch (error) {
        if (error.name === "AbortError") return;
        const gone = error.status === 404;
        frame(h("h2", {}, gone ? "Not here" : "Cannot be read"),
          h("p", {}, gone ? "No event has this id. It may be older than retention keeps." : `${error.message}.`),
          gone ? null : h("button", { type: "button", onclick: () => { shown = ""; this.show(id); } }, "Try again"), h("p.mono.soft", {}, visible(id)));
      }
    },
    get isOpen() {
      return !root.hidden;
    },
    body: () => root.querySelector(".detail-body"),
  };
}

function late(occurred, received) {
  const seconds = (received - occurred) / 1000;
  if (Math.abs(seconds) < 0.001) return "within the same millisecond";
  return seconds >= 0 ? `${format.duration(seconds)} later` : `${format.duration(-seconds)} before it occurred`;
}

/** Changes what is searched, as a link that can be opened beside as well. */
function link(change, text, title) {
  const href = write({ ...read(), view: "events", ...change });
  return h("a", { href, title }, visible(text));
}

const only = (change) => ({ text: "", event: "", resource: "", label: "", id: "", ...change });

/** A short value that can be searched to the letter: `*`, `?` and a leading `!` mean something else there. */
const isPlain = (value) => !/[*?]|^!/.test(value) && value.length <= 120;

function labels(resource) {
  const entries = Object.entries(resource);
  const list = h("dl.labels");
  const put = ([key, value]) => {
    const shown = visible(value);
    const isId = key === ID;
    const target = isId ? only({ resource: value }) : only({ label: `${key}=${value}` });
    const text = shown === "" ? h("span.soft", {}, "empty") : shown.length > 400 ? `${shown.slice(0, 400)}…` : shown;
    list.append(h("dt", { title: visible(key) }, visible(key)),
      h("dd", {}, shown !== "" && isPlain(String(value)) && !key.includes("=") ? link(target, text, isId ? "Events of this resource" : "Events with this label") : text));
  };
  entries.slice(0, LABELS).forEach(put);
  return h("div", {}, list, all(entries, LABELS, put, "labels"));
}

function related(resources) {
  const list = h("ul.related-list");
  const put = (resource) => {
    const id = String(resource[ID] ?? "");
    list.append(h("li", {}, h("span.role", {}, visible(resource[ROLE] ?? "–")),
      h("span", {}, resource[NAME] ? h("span.res-name", {}, visible(resource[NAME]), " ") : null, link(only({ resource: id }), id, "Events of this resource"))));
  };
  resources.slice(0, RELATED).forEach(put);
  return h("div", {}, list, all(resources, RELATED, put, "related resources"));
}

function all(entries, shown, put, what) {
  if (entries.length <= shown) return null;
  const button = h("button.quiet.rest", {
    type: "button",
    onclick: () => {
      button.remove();
      entries.slice(shown).forEach(put);
    },
  }, `All ${format.number(entries.length)} ${what}`);
  return button;
}
