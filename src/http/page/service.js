// What an operator asks next: retention, the stream and its guard, each part and its last error, the
// ledger.

import { h, fill, visible } from "./dom.js";
import * as format from "./format.js";

const OUTCOMES = { done: "done", left_to_another: "left to another replica", failed: "failed" };

/** What their names in `/api/ready` mean. */
const PARTS = {
  "source.http": "HTTP and WebSocket", "source.redis": "Redis stream", "source.nats": "NATS stream", store: "Database",
  "store.refusals": "Refusals by the database", trim: "Retention",
};

const when = (text) => (text ? h("time", { datetime: text, title: format.utc(text) }, format.moment(Date.parse(text))) : "–");

const ago = (text, now) => (text ? format.ago(Date.parse(text), now) : "");

function card(title, state, ...children) {
  return h("section.card", { data: state ? { state } : {} }, h("h2", {}, title), ...children);
}

/** @param {[string, any, any?][]} lines term, value, and what is said softly behind it */
function facts(lines) {
  return h("dl.facts", {}, ...lines.filter(Boolean).flatMap(([term, value, soft]) => [h("dt", {}, term), h("dd", {}, value, soft ? h("span.soft", {}, ` ${soft}`) : null)]));
}

function retention(said, now, database) {
  if (!said.is_on) return card("Retention", null, h("p", {}, "Off: nothing is deleted."));
  const { last_pass: last } = said;
  return card("Retention", said.waits_for_person || last?.outcome === "failed" ? "failing" : null, facts([
    ["Keeps", format.duration(said.keeps), "after they occurred"],
    ["Oldest event", when(database.oldest), ago(database.oldest, now)],
    ["Next pass", said.next_pass ? when(said.next_pass) : "under way",
      said.next_before ? `removes what occurred before ${format.moment(Date.parse(said.next_before))}` : ""],
    last && ["Last pass", when(last.at), OUTCOMES[last.outcome]],
    last && ["It removed", `${format.number(last.events)} events`, `${format.number(last.resources)} resources in ${format.duration(last.seconds)}`],
    ["Removed", `${format.number(said.removed)} events`, "since it started"],
    said.archive && ["Archive", visible(said.archive.place), said.archive.is_failing ? "cannot be used: nothing is removed" : ""],
    said.archive && ["Archived", `${format.number(said.archive.events)} events`, `in ${format.number(said.archive.files)} files since it started`],
  ]));
}

function stream(said) {
  if (!said) return card("Stream", null, h("p.soft", {}, "No bus is set: events come by HTTP and WebSocket."));
  const nats = said.kind === "nats";
  return card("Stream", null, facts([
    ["Stream", visible(said.name), `${nats ? "consumer" : "group"} ${visible(said.group)}`],
    ["Lag", said.lag === null ? "not known" : format.number(said.lag), "entries that no replica was given yet"],
    ["Behind by", format.duration(said.lag_seconds)],
    ["Pending", format.number(said.own_pending), `here, ${format.number(said.group_pending)} in all replicas`],
    ["Length", format.number(said.length), "entries, acknowledged or not"],
    nats ? ["Redelivered", format.number(said.claimed), "after a replica died, or was slow"] : ["Taken over", format.number(said.claimed), "from replicas that died"],
    ["Lost", format.number(said.lost), said.lost ? `${nats ? "removed by the stream's limits" : "trimmed by others"} before they were read` : ""],
  ]));
}

/** What keeps others from trimming the stream before its entries are committed. */
function guard(said) {
  if (!said) return card("Trim guard", null, h("p.soft", {}, "Off: others may trim what is not committed."));
  const bad = !said.is_there || said.age > 60 || said.is_too_long;
  return card("Trim guard", bad ? "failing" : null, facts([
    ["In place", said.is_there ? "yes" : "no"],
    ["Lets go up to", when(said.position_time)],
    ["Last moved", format.duration(said.age), "ago"],
    ["Alarm at", format.number(said.max_entries), "entries"],
  ]));
}

function parts(components) {
  return card("Parts", components.some(({ state }) => state === "failing") ? "failing" : null, h("ul.parts", {}, ...components.map((part) =>
    h("li", { data: { state: part.state } }, h("span.dot", { "aria-hidden": "true" }), h("span.name", {}, PARTS[part.name] ?? part.name, h("span.soft", {}, PARTS[part.name] ? ` ${part.name}` : "")), h("span.soft", {}, part.state === "failing" && part.num_failures > 1 ? `failing, ${format.number(part.num_failures)} times` : part.state),
      part.last_error && h("p.error", {}, visible(part.last_error), part.last_error_at ? h("span.soft", {}, " ", when(part.last_error_at)) : null)))));
}

function ledger(said) {
  const term = (name, sign, value) => h("tr", {}, h("th", { scope: "row" }, name), h("td.num", {}, sign, " ", format.number(value)));
  const left = said.received + said.redelivered;
  return card("Ledger", null, h("table.ledger", {}, h("tbody", {}, term("Received", "", said.received), term("Redelivered", "+", said.redelivered)),
    h("tbody.sum", {}, term("Taken in", "=", left)),
    h("tbody", {}, term("Stored", "", said.stored), term("Duplicates", "+", said.duplicates), term("Dead letters", "+", said.dead_lettered), term("Ignored (empty)", "+", said.ignored),
      term("Left with the source", "+", said.released), term("In flight", "+", said.in_flight)),
    h("tbody.sum", {}, term("Accounted for", "=", said.stored + said.duplicates + said.dead_lettered + said.ignored + said.released + said.in_flight))));
}

export function service(root) {
  let shown = "";
  return {
    /** @param {any} said `GET /api/status` */
    show({ pipeline, flow, retention: kept, stream: bus, guard: kept_back, service: self, now }) {
      // Drawn anew only where something else is to be read: a selection stays.
      const text = JSON.stringify([pipeline, flow.database, kept, bus, kept_back]);
      if (text === shown || root.contains(document.activeElement) || getSelection().containsNode(root, true) && !getSelection().isCollapsed) return;
      shown = text;
      const at = Date.parse(now);
      fill(root, h("div.cards", {}, retention(kept, at, flow.database), parts(pipeline.components), ledger(pipeline.ledger),
        card("Service", pipeline.generation > 1 ? "odd" : null, facts([
          ["Version", self.version], ["Started", when(self.started), ago(self.started, at)], ["Listens at", self.address],
          ["Pipeline", pipeline.generation === 1 ? "never started over" : `started ${format.number(pipeline.generation)} times`],
          ["Database", `${flow.database.kind} ${flow.database.version}`, visible(flow.database.name)],
        ])), stream(bus), bus?.kind === "redis" && guard(kept_back)));
    },
  };
}
