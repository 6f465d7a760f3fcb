// How many events there were when, to drag over. The readout stands in one place above the bars, so
// nothing floats over them and nothing moves.

import { h, svg, fill, say, mark } from "./dom.js";
import * as format from "./format.js";

/** Prefect counts its buckets from here. */
const ORIGIN = Date.UTC(2024, 3, 1);
/** The widths of bars, in seconds. Whole parts of each other, as people read time. */
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 2 * 86400, 7 * 86400, 28 * 86400];
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const MOST_BARS = 120;
const HEIGHT = 84;
const AXIS = 18;
/** A shorter drag is a click with a shaking hand. */
const SHORTEST_DRAG = 5;

/**
 * How to cut a span into bars.
 * @returns {{since: number, until: number, step: number, unit: string, interval: number}} edges that
 *   stand on those of the server's buckets
 */
export function plan({ since, until }) {
  const seconds = (until - since) / 1000;
  const step = STEPS.find((step) => seconds / step <= MOST_BARS) ?? Math.ceil(seconds / MOST_BARS / 86400) * 86400;
  const [unit, size] = UNITS.find(([, size]) => step % size === 0);
  const millis = step * 1000;
  const edge = (time, round) => ORIGIN + round((time - ORIGIN) / millis) * millis;
  return { since: edge(since, Math.floor), until: edge(until, Math.ceil), step: millis, unit, interval: step / size };
}

/**
 * @param {HTMLElement} root
 * @param {{zoom: (span: {since: number, until: number}) => void, out: () => void}} told
 */
export function histogram(root, told) {
  const total = h("strong.total", {}, "–");
  const readout = h("span.readout");
  const out = h("button.quiet.out", { type: "button", title: "Zoom out  –", onclick: told.out }, "Zoom out");
  const bars = svg("path", { class: "bars" });
  const part = svg("path", { class: "part" });
  const chosen = svg("rect", { class: "chosen", y: 0, height: HEIGHT, width: 0 });
  const cursor = svg("rect", { class: "cursor", y: 0, height: HEIGHT, width: 0 });
  const base = svg("path", { class: "base" });
  const high = svg("path", { class: "top" });
  const axis = svg("g", { class: "axis" });
  const most = svg("text", { class: "most", x: 0, y: 10 });
  const plot = svg("svg", { height: HEIGHT + AXIS, "aria-hidden": "true", focusable: "false" }, cursor, high, bars, part, base, chosen, axis, most);
  const field = h("div.plot", {
    tabindex: 0, role: "slider", "aria-label": "Events over time", "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": 0,
    "aria-describedby": "histogram-keys",
  }, plot);
  const keys = h("p.visually-hidden", { id: "histogram-keys" },
    "Left and right choose a bar, with shift a span of bars. Enter zooms into it, minus zooms out.");
  fill(root, h("div.histogram-head", {}, h("span.figures", {}, total, " ", readout), out), field, keys);

  /** @type {{since: number, until: number, step: number}} */
  let drawn = plan({ since: Date.now() - 3600e3, until: Date.now() });
  let counts = new Float64Array(0);
  let parts = null;
  let unknown = "counting";
  let width = 0;
  let from = -1; // the bar where a choice began
  let to = -1; // the bar under the pointer, or chosen by keys
  let dragging = false;
  let dragX = 0;

  const num = () => counts.length;
  const x = (index) => (index / num()) * width;
  const bar = (clientX) => {
    const { left } = field.getBoundingClientRect();
    return Math.min(num() - 1, Math.max(0, Math.floor(((clientX - left) / width) * num())));
  };
  const edges = (a, b) => ({
    since: drawn.since + Math.min(a, b) * drawn.step,
    until: drawn.since + (Math.max(a, b) + 1) * drawn.step,
  });

  function path(values, top) {
    const gap = width / num() > 4 ? 1 : 0;
    let d = "";
    for (let i = 0; i < num(); i += 1) {
      if (!values[i]) continue;
      // One event among thousands is still there to be seen.
      const height = Math.max(2, (values[i] / top) * (HEIGHT - 6));
      d += `M${x(i).toFixed(1)} ${HEIGHT}v${(-height).toFixed(1)}H${(x(i + 1) - gap).toFixed(1)}V${HEIGHT}z`;
    }
    return d;
  }

  function draw() {
    if (!width || !num()) return;
    const top = counts.reduce((a, b) => Math.max(a, b), 1);
    const isEmpty = counts.every((count) => count === 0);
    mark(bars, "d", path(counts, top));
    mark(part, "d", parts ? path(parts, top) : "");
    mark(base, "d", `M0 ${HEIGHT + 0.5}H${width}`);
    mark(high, "d", unknown || isEmpty ? "" : `M${10 + 7 * format.compact(top).length} 6.5H${width}`);
    mark(plot, "width", width);
    mark(field, "data-part", parts ? "" : null);
    say(most, unknown || isEmpty ? "" : format.compact(top));
    drawAxis();
    drawChoice();
  }

  function drawAxis() {
    // At full minutes, hours and days of the person's zone, as many as there is room for.
    const room = ((84 / width) * (drawn.until - drawn.since)) / 1000;
    const every = (STEPS.find((step) => step >= room && (step * 1000) % drawn.step === 0) ?? room) * 1000;
    const zone = new Date(drawn.until).getTimezoneOffset() * 60e3;
    const ticks = [];
    for (let time = Math.ceil((drawn.since - zone) / every) * every + zone; time <= drawn.until; time += every) {
      const at = ((time - drawn.since) / (drawn.until - drawn.since)) * width;
      // Where it would be cut off it is left out.
      if (at < 24 || at > width - 24) continue;
      ticks.push(
        svg("path", { d: `M${at.toFixed(1)} ${HEIGHT}v4` }),
        svg("text", { x: at.toFixed(1), y: HEIGHT + 15, "text-anchor": "middle" }, format.tick(time, every)),
      );
    }
    axis.replaceChildren(...ticks);
  }

  function drawChoice() {
    const isSpan = from >= 0 && to >= 0 && (dragging || from !== to);
    const [a, b] = isSpan ? [Math.min(from, to), Math.max(from, to)] : [to, to];
    mark(chosen, "x", isSpan ? x(a) : 0);
    mark(chosen, "width", isSpan ? x(b + 1) - x(a) : 0);
    mark(cursor, "x", to >= 0 ? x(to) : 0);
    mark(cursor, "width", to >= 0 ? Math.max(1, x(to + 1) - x(to)) : 0);
    tell(a, b);
  }

  function tell(a, b) {
    if (unknown) {
      say(total, "–");
      say(readout, unknown);
      mark(field, "aria-valuetext", unknown);
      return;
    }
    const sum = (values, a, b) => values.subarray(a, b + 1).reduce((x, y) => x + y, 0);
    const all = to < 0;
    const { since, until } = all ? drawn : edges(a, b);
    const count = all ? sum(counts, 0, num()) : sum(counts, a, b);
    const within = parts ? ` (${format.number(all ? sum(parts, 0, num()) : sum(parts, a, b))} of the one looked at)` : "";
    say(total, format.number(count));
    say(readout, `${count === 1 ? "event" : "events"}${within}, ${format.span(since, until)}${all ? `, bars of ${format.duration(drawn.step / 1000)}` : ""}`);
    mark(field, "aria-valuemax", num() - 1);
    mark(field, "aria-valuenow", Math.max(0, to));
    mark(field, "aria-valuetext", `${format.number(count)} events, ${format.span(since, until)}`);
  }

  function leave() {
    from = to = -1;
    dragging = false;
    drawChoice();
  }

  function zoom() {
    const span = edges(from < 0 ? to : from, to);
    leave();
    told.zoom(span);
  }

  field.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !num()) return;
    dragging = true;
    dragX = event.clientX;
    from = to = bar(event.clientX);
    field.setPointerCapture(event.pointerId);
    drawChoice();
  });
  field.addEventListener("pointermove", (event) => {
    if (!num()) return;
    to = bar(event.clientX);
    if (!dragging) from = -1;
    drawChoice();
  });
  field.addEventListener("pointerup", (event) => {
    if (!dragging) return;
    dragging = false;
    if (Math.abs(event.clientX - dragX) >= SHORTEST_DRAG) zoom();
    else {
      from = -1;
      drawChoice();
    }
  });
  field.addEventListener("pointercancel", leave);
  field.addEventListener("pointerleave", () => dragging || leave());
  field.addEventListener("blur", leave);
  field.addEventListener("dblclick", told.out);
  field.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity }[event.key];
    if (step !== undefined) {
      const before = to < 0 ? num() - 1 : to;
      if (event.shiftKey && from < 0) from = before;
      to = to < 0 && !event.shiftKey ? before : Math.min(num() - 1, Math.max(0, before + step));
      if (!event.shiftKey) from = -1;
      drawChoice();
    } else if (event.key === "Enter" && to >= 0) zoom();
    else if (event.key === "Escape" && to >= 0) leave();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  new ResizeObserver(([entry]) => {
    width = Math.floor(entry.contentRect.width);
    draw();
  }).observe(field);

  function sorted(buckets) {
    const values = new Float64Array(Math.max(1, Math.round((drawn.until - drawn.since) / drawn.step)));
    for (const { start_time, count } of buckets) {
      const index = Math.round((Date.parse(start_time) - drawn.since) / drawn.step);
      if (index >= 0 && index < values.length) values[index] += count;
    }
    return values;
  }

  return {
    /** Draws what was counted, cut as `plan` says. */
    show(cut, buckets) {
      drawn = cut;
      counts = sorted(buckets);
      parts = null;
      unknown = "";
      if (to >= num()) leave();
      draw();
    },
    /** They could not be counted: no number is better than a wrong one. */
    fail(reason) {
      unknown = `events could not be counted: ${reason}`;
      counts.fill(0);
      parts = null;
      draw();
    },
    /** Colours the share of some of them; `null` ends it. */
    share(buckets) {
      parts = buckets && sorted(buckets);
      draw();
    },
    /** Counts an event that has just come. */
    add(millis) {
      const index = Math.floor((millis - drawn.since) / drawn.step);
      if (index >= 0 && index < num()) counts[index] += 1;
    },
    /** Moves on to what is now, by whole bars. */
    slide(cut) {
      const by = Math.round((cut.since - drawn.since) / drawn.step);
      if (cut.step !== drawn.step) return;
      const moved = new Float64Array(Math.round((cut.until - cut.since) / cut.step));
      for (let i = 0; i < moved.length; i += 1) moved[i] = counts[i + by] ?? 0;
      if (by !== 0) parts = null;
      [counts, drawn] = [moved, cut];
      draw();
    },
    get plan() {
      return drawn;
    },
    busy: (isBusy) => mark(root, "data-busy", isBusy ? "" : null),
    canZoomOut: (can) => (out.disabled = !can),
  };
}
