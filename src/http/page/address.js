// All that a person has chosen stands in the address behind the #, so that a link shows another
// person the same. Nothing of it reaches the server before it is asked for as a filter.

/**
 * @typedef {Object} Chosen
 * @property {"events"|"letters"|"service"} view
 * @property {string} text
 * @property {string} event   a name, or `prefix*`
 * @property {string} resource an id, or `prefix*`
 * @property {string} label   `key=value`, where the value may have `*`, `?` and a leading `!`
 * @property {string} last    `15m`, `1h`, …, `all`; empty where since and until are given
 * @property {number|null} since
 * @property {number|null} until
 * @property {"desc"|"asc"} order
 * @property {boolean} live
 * @property {string} id      the event that is open
 */

/** The spans to choose from, in milliseconds. */
export const SPANS = { "15m": 900e3, "1h": 3600e3, "24h": 86400e3, "7d": 7 * 86400e3, "30d": 30 * 86400e3, all: Infinity };

const VIEWS = ["events", "letters", "service"];
const WORDS = ["text", "event", "resource", "label", "id"];
// As far as Prefect looks back by itself; what `all` begins with until the oldest event is known.
const FARTHEST = 180 * 86400e3;
// The server knows no year before 1 or after 9999.
const FIRST = Date.parse("0001-01-01T00:00:00.000Z");
const LAST = Date.parse("9999-12-31T23:59:59.999Z");

/** @returns {Chosen} */
export function read(hash = location.hash) {
  const [view, query] = hash.replace(/^#/, "").split("?");
  const given = new URLSearchParams(query ?? "");
  const chosen = { view: VIEWS.includes(view) ? view : "events", last: "1h", since: null, until: null };
  for (const word of WORDS) chosen[word] = given.get(word) ?? "";
  const since = Date.parse(given.get("since") ?? "");
  const until = Date.parse(given.get("until") ?? "");
  if (since < until) Object.assign(chosen, { last: "", since, until });
  else if (given.get("last") in SPANS) chosen.last = given.get("last");
  chosen.order = given.get("order") === "asc" ? "asc" : "desc";
  // An end in the past, or the oldest first, has nothing new to follow.
  chosen.live = given.get("live") !== "off" && chosen.last !== "" && chosen.order === "desc";
  return /** @type {any} */ (chosen);
}

/** @param {Chosen} chosen */
export function write(chosen) {
  const given = new URLSearchParams();
  for (const word of WORDS) if (chosen[word]) given.set(word, chosen[word]);
  if (chosen.since !== null && chosen.until !== null) {
    given.set("since", new Date(chosen.since).toISOString());
    given.set("until", new Date(chosen.until).toISOString());
  } else {
    if (chosen.last !== "1h") given.set("last", chosen.last);
    if (!chosen.live) given.set("live", "off");
  }
  if (chosen.order === "asc") given.set("order", "asc");
  const query = given.toString();
  return `#${chosen.view}${query ? `?${query}` : ""}`;
}

/** Goes there. `replace` keeps typing and opening out of the way back. */
export function go(change, { replace = false } = {}) {
  const hash = write({ ...read(), ...change });
  if (hash === location.hash) return;
  if (!replace) {
    location.hash = hash;
    return;
  }
  history.replaceState(null, "", hash);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

/** From when to when, at this moment; `oldest` is the first event's time, where it is known. */
export function spanOf(chosen, oldest, now = Date.now()) {
  if (chosen.since !== null) return { since: chosen.since, until: chosen.until };
  if (chosen.last === "all") return { since: Math.min(oldest ?? now - FARTHEST, now - 60e3), until: now };
  return { since: now - SPANS[chosen.last], until: now };
}

/** What is asked for, as Prefect's filters have it; without the span, which live events have not. */
export function filterOf(chosen) {
  const filter = { order: chosen.order.toUpperCase() };
  const event = nameOrPrefix(chosen.event);
  if (event) filter.event = event.prefix ? { prefix: [event.prefix] } : { name: [event.name] };
  const any = {};
  const resource = nameOrPrefix(chosen.resource);
  if (resource) any[resource.prefix ? "id_prefix" : "id"] = [resource.prefix ?? resource.name];
  const label = /^([^=]+)=(.*)$/.exec(chosen.label.trim());
  if (label) any.labels = { [label[1].trim()]: [label[2].trim()] };
  if (Object.keys(any).length) filter.any_resource = [any];
  if (chosen.text.trim()) filter.text = { query: chosen.text.trim() };
  return filter;
}

/** The same within a span. */
export const filterWithin = (chosen, span) => ({ ...filterOf(chosen), occurred: within(span) });

/** A span as the server takes it. */
export const within = ({ since, until }) => ({ since: time(since), until: time(until) });

const time = (at) => new Date(Math.min(Math.max(at, FIRST), LAST)).toISOString();

function nameOrPrefix(text) {
  const wanted = text.trim();
  if (!wanted) return null;
  return wanted.endsWith("*") ? { prefix: wanted.slice(0, -1) } : { name: wanted };
}

/** Whether anything but the span narrows what is shown. */
export const isNarrowed = (chosen) => ["text", "event", "resource", "label"].some((word) => chosen[word].trim());
