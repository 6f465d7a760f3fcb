// The way of the events, from left to right: what comes in how fast, what waits where, what became
// of it. Numbers keep their places; only they change.

import { h, svg, fill, say, mark } from "./dom.js";
import * as format from "./format.js";

/** Two minutes of what was stored, one point for each look. */
const POINTS = 60;
const [SPARK_WIDTH, SPARK_HEIGHT] = [120, 26];

/** Rates come from two looks at the same counters; a restart begins anew. */
class Rates {
  #last = null;

  /** @returns {((key: string, count: number) => number|null)} */
  between(uptime, counts) {
    const before = this.#last;
    this.#last = { uptime, counts };
    const seconds = before ? uptime - before.uptime : 0;
    return (key) => (seconds > 0 && key in before.counts ? Math.max(0, (counts[key] - before.counts[key]) / seconds) : null);
  }
}

function station(title, id) {
  const parts = {
    state: h("span.dot", { "aria-hidden": "true" }), num: h("span.num", {}, "–"), unit: h("span.unit"), line: h("p.line"), second: h("p.line.soft"),
  };
  const element = h("div.station", { id: `flow-${id}` }, h("h2", {}, parts.state, title), h("p.figure", {}, parts.num, " ", parts.unit), parts.line, parts.second);
  return { element, ...parts };
}

const arrow = () => h("span.arrow", { "aria-hidden": "true" }, svg("svg", { viewBox: "0 0 24 12", width: 24, height: 12 }, svg("path", { d: "M0 6h21M17 2l4 4-4 4" })));

export function flow(root) {
  const sources = station("Sources", "sources");
  const list = h("ul.sources");
  sources.line.replaceWith(list);
  sources.second.remove();
  const flight = station("In flight", "flight");
  const filled = h("meter", { min: 0, max: 1, value: 0, "aria-label": "Room taken in flight" });
  flight.line.after(filled);
  const writers = station("Writers", "writers");
  const database = station("Database", "database");
  const spark = svg("path", { class: "spark" });
  database.element.append(svg("svg", { class: "sparkline", viewBox: `0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "spark-base", d: `M0 ${SPARK_HEIGHT - 0.5}H${SPARK_WIDTH}` }), spark));
  const letters = station("Dead letters", "letters");
  letters.element.classList.add("beside");
  const lettersLink = h("a.cover", { href: "#letters", "aria-label": "Show the dead letters" });
  letters.element.append(lettersLink);
  fill(root, h("div.way", {}, sources.element, arrow(), flight.element, arrow(), writers.element, arrow(), database.element), letters.element);

  const rates = new Rates();
  const stored = [];

  function drawSources(shown, rate) {
    while (list.children.length > shown.length) list.lastChild.remove();
    shown.forEach((source, index) => {
      let line = list.children[index];
      if (!line) {
        line = h("li", {}, h("span.dot", { "aria-hidden": "true" }), h("span.name"), h("span.rate"), h("span.soft"));
        list.append(line);
      }
      const [, name, speed, waits] = line.children;
      mark(line, "data-state", source.state);
      say(name, source.name);
      say(speed, `${format.rate(rate(`in.${source.name}`))}/s`);
      say(waits, source.waiting === null ? "" : source.waiting ? `${format.compact(source.waiting)} waiting` : "none waits");
      mark(waits, "data-tone", source.waiting > 10000 ? "odd" : null);
      mark(line, "title", source.state === "failing" ? source.last_error : null);
    });
  }

  function drawSpark(value) {
    stored.push(value);
    if (stored.length > POINTS) stored.shift();
    const top = Math.max(1, ...stored);
    const step = SPARK_WIDTH / (POINTS - 1);
    const from = POINTS - stored.length;
    const points = stored.map((value, i) => `${((from + i) * step).toFixed(1)} ${(SPARK_HEIGHT - 1 - (value / top) * (SPARK_HEIGHT - 3)).toFixed(1)}`);
    mark(spark, "d", points.length > 4 ? `M${points.join("L")}` : "");
  }

  return {
    /** @param {any} said `GET /api/status` */
    show({ pipeline, flow, service, now }) {
      const { ledger } = pipeline;
      const counts = { stored: ledger.stored, in: ledger.received + ledger.redelivered, batches: flow.writers.batches };
      for (const source of flow.sources) counts[`in.${source.name}`] = source.received;
      const rate = rates.between(service.uptime, counts);
      // A part may be to blame without a failure of its own: one that does not answer says no error either.
      const isBlamed = (name) => !pipeline.ready && pipeline.reason?.startsWith(`${name}: `);
      const part = (name) => isBlamed(name) ? "failing" : pipeline.components.find((one) => one.name === name)?.state ?? "starting";

      const isFailing = flow.sources.some((source) => source.state === "failing");
      mark(sources.element, "data-state", isFailing ? "failing" : "ok");
      say(sources.num, format.rate(rate("in")));
      say(sources.unit, "events/s");
      drawSources(flow.sources, rate);

      const { in_flight: held } = flow;
      const taken = Math.max(held.events / held.max_events, held.bytes / held.max_bytes);
      mark(flight.element, "data-state", pipeline.degraded || !pipeline.ready ? "degraded" : taken >= 0.95 ? "full" : "ok");
      say(flight.num, format.number(held.events));
      say(flight.unit, "held");
      say(flight.line, held.bytes === null ? `of ${format.number(held.max_events)}` : `${format.bytes(held.bytes)} of ${format.bytes(held.max_bytes)}`);
      filled.value = taken;
      say(flight.second, pipeline.oldest_unflushed === null ? "nothing waits" : `oldest ${format.duration(pipeline.oldest_unflushed)}`);

      mark(writers.element, "data-state", part("store"));
      mark(writers.second, "title", "From handing a batch to a writer to its commit, in the last minute");
      const { busy, num } = flow.writers;
      say(writers.num, busy === null ? format.number(num) : `${busy} of ${num}`);
      say(writers.unit, busy === null ? "" : "busy");
      const batches = rate("batches");
      const size = rate("stored") ? ` of ${format.rate(rate("stored") / batches)}` : "";
      say(writers.line, batches ? `${format.rate(batches)} batches/s${size}` : "no batch now");
      const { flush_p50: usual, flush_p99: longest } = flow.writers;
      say(writers.second, usual === null ? "" : `p50 ${format.durations(usual, longest, ", p99 ")}`);

      mark(database.element, "data-state", part("store"));
      say(database.num, format.rate(rate("stored")));
      say(database.unit, "stored/s");
      const known = flow.database.events;
      say(database.line, `${flow.database.is_estimate ? "≈ " : ""}${known === null ? "–" : flow.database.is_estimate ? format.compact(known) : format.number(known)} events`);
      say(database.second, `${flow.database.kind}, ${format.bytes(flow.database.bytes)}`);
      if (rate("stored") !== null) drawSpark(rate("stored"));

      const dead = flow.dead_letters;
      mark(letters.element, "data-state", dead.num > 0 ? "odd" : "none");
      say(letters.num, format.number(dead.num));
      say(letters.unit, dead.num === 1 ? "message" : "messages");
      say(letters.line, dead.num === null ? "not known now" : dead.num ? `last ${format.ago(Date.parse(dead.newest), Date.parse(now))}` : "nothing was refused");
      say(letters.second, dead.num ? `parser ${format.number(dead.parse)}, database ${format.number(dead.store)}` : "");
    },
    /** What it shows is no longer what is. */
    stale: (isStale) => mark(root, "data-stale", isStale ? "" : null),
  };
}
