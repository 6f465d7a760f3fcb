// Every question to the server. All are of the same origin: the cookie goes along, and no other
// page can ask them.

/** What went wrong, in the server's words. */
export class Refused extends Error {
  /** @param {number} status 0 where no answer came @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Told of every answer: whether one came, and whether it wants a signature. */
export const connection = new EventTarget();

/**
 * Keeps a number as it is written where JavaScript would round it. A browser without `JSON.rawJSON` rounds it.
 * @returns {any}
 */
function exact(key, value, context) {
  const isKept = typeof value !== "number" || !context?.source || String(value) === context.source;
  return isKept || !JSON.rawJSON ? value : JSON.rawJSON(context.source);
}

async function ask(method, path, body, signal, reviver) {
  const given = { method, signal, headers: { accept: "application/json" }, cache: "no-store" };
  if (body !== undefined) {
    given.headers["content-type"] = "application/json";
    given.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, given);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    connection.dispatchEvent(new Event("lost"));
    throw new Refused(0, "the service does not answer");
  }
  connection.dispatchEvent(new Event("answered"));
  if (answer.status === 204) return null;
  const said = await answer.text().then((text) => JSON.parse(text, reviver)).catch(() => null);
  if (answer.ok) return said;
  if (answer.status === 401) connection.dispatchEvent(new Event("unauthorized"));
  throw new Refused(answer.status, reason(said) ?? `the service answers ${answer.status}`);
}

/** Prefect's 422 lists what is wrong; other errors have one sentence. */
function reason(said) {
  const details = said?.exception_detail ?? said?.detail;
  if (Array.isArray(details) && details[0]?.msg) {
    return details.map((one) => `${(one.loc ?? []).join(".")}: ${one.msg}`).join("; ");
  }
  return said?.exception_message ?? said?.reason ?? (typeof details === "string" ? details : null);
}

/** `GET /api/status`. A service that is not ready answers too, by 503 with the same document. */
export async function status() {
  return ask("GET", "api/status");
}

export const firstPage = (filter, signal) => ask("POST", "api/events/filter", { filter, limit: 50 }, signal);

/** The server may name the page by a whole URL, as Prefect does; only its token counts. */
export function nextPage(next, signal) {
  const token = new URL(next, location.href).searchParams.get("page-token") ?? "";
  return ask("GET", `api/events/filter/next?page-token=${encodeURIComponent(token)}`, undefined, signal);
}

export const countByTime = (filter, unit, interval, signal) =>
  ask("POST", "api/events/count-by/time", { filter, time_unit: unit, time_interval: interval }, signal);

/** The server refuses a count of too many intervals by name as well. */
export const countByEvent = (filter, unit, interval, signal) =>
  ask("POST", "api/events/count-by/event", { filter, time_unit: unit, time_interval: interval }, signal);

/** Its numbers may be `JSON.rawJSON`. */
export const oneEvent = (id, signal) =>
  ask("GET", `api/events/${encodeURIComponent(id)}`, undefined, signal, exact);

export const letters = (before, signal) =>
  ask("GET", `api/dead-letters?limit=50${before ? `&before=${encodeURIComponent(before)}` : ""}`, undefined, signal);

export const letter = (id, signal) => ask("GET", `api/dead-letters/${encodeURIComponent(id)}`, undefined, signal);

/** @param {{ids?: string[], through?: string}} which */
export const replay = (which) => ask("POST", "api/dead-letters/replay", which);

/** @param {{ids?: string[], through?: string}} which */
export const purge = (which) => ask("POST", "api/dead-letters/purge", which);

export const signIn = (user, password) => ask("POST", "api/session", { user, password });

export const signOut = () => ask("DELETE", "api/session");
