// The events, one a row: those that have come since, above the pages that were searched. Only what is
// in view has elements, and only pages near it are kept, so a million rows cost what a hundred do.

import { h, fill, say, mark, visible, clip } from "./dom.js";
import * as format from "./format.js";

/** Kept of what has come live, and of what waits while somebody reads. */
const MOST_FRESH = 1000;
/** Pages whose events are kept; others keep the token that fetches them again. */
const MOST_PAGES = 40;
/** Browsers draw no element higher than some 16 million pixels. */
const HIGHEST = 15e6;
const BESIDE_VIEW = 6;

/**
 * What a row shows. The rest of an event, up to megabytes, is let go of until it is opened.
 * @typedef {{id: string, at: number, occurred: string, event: string, resource: string, name: string, related: number}} Row
 */

/** @returns {Row} */
export function row(event) {
  const id = event.resource?.["prefect.resource.id"] ?? "";
  const name = event.resource?.["prefect.resource.name"] ?? "";
  return {
    id: event.id, at: Date.parse(event.occurred), occurred: event.occurred, event: clip(visible(clip(event.event, 300)), 300),
    resource: clip(visible(clip(id, 300)), 300), name: clip(visible(clip(name, 200)), 200), related: event.related?.length ?? 0,
  };
}

const BAD = /(^|[._-])(failed|failure|crashed|error|refused|rejected|dead|timedout|exception|not-ready|unhealthy)$/i;
const ODD = /(^|[._-])(late|retrying|awaitingretry|paused|cancell?ed|cancelling|warning|low|degraded)$/i;

/** A sparing colour: only names that say so themselves. */
const tone = (event) => (BAD.test(event) ? "bad" : ODD.test(event) ? "odd" : null);

/**
 * @param {HTMLElement} root
 * @param {{open: (id: string) => void, page: (next: string|null, before: Row|null) => Promise<{events: object[], next_page: string|null, total: number}>, refused: () => void, order: () => void}} told
 */
export function list(root, told) {
  const order = h("button.quiet.order", { type: "button", onclick: told.order });
  const head = h("div.row.head", { role: "row", "aria-rowindex": 1 },
    h("span.time", { role: "columnheader" }, order), h("span.event", { role: "columnheader" }, "Event"),
    h("span.resource", { role: "columnheader" }, "Resource"), h("span.related", { role: "columnheader" }, "Related"),
    h("span.age", { role: "columnheader" }, "Age"));
  const sizer = h("div.sizer", { role: "rowgroup" });
  // The grid itself scrolls, under its head: what has the focus is what the keys scroll.
  const scroller = h("div.grid", { role: "grid", tabindex: 0, "aria-label": "Events, newest first", "aria-readonly": "true" },
    h("div.head-group", { role: "rowgroup" }, head), sizer);
  const pill = h("button.pill", { type: "button", hidden: true, onclick: release });
  const note = h("div.note", { hidden: true });
  fill(root, h("div.list-body", {}, h("div.list-frame", {}, scroller), pill, note));

  /** @type {Row[]} newest first */
  let fresh = [];
  /** @type {Row[]} newest first; what has come while somebody reads */
  let held = [];
  let numHeld = 0;
  /** @type {{rows: Row[]|null, size: number, start: number, next: string|null, token: string|null}[]} */
  let pages = [];
  // Nothing has been asked for yet.
  let ended = true;
  let loading = null;
  let failed = "";
  let following = false;
  /** Where the searched part begins once it no longer fits to what has come since. */
  let before = null;
  let turn = 0;
  let selected = null;
  let opened = null;
  let rowHeight = 32;
  let height = 0;
  let frame = 0;
  /** @type {Map<number, HTMLElement>} */
  const drawn = new Map();
  const spare = [];

  const numPaged = () => (pages.length ? pages.at(-1).start + pages.at(-1).size : 0);
  const numRows = () => fresh.length + numPaged();
  const reading = () => scroller.scrollTop > 4 || selected !== null || opened !== null;

  /** @returns {Row|null|undefined} null where its page has to be fetched again */
  function at(index) {
    if (index < fresh.length) return fresh[index];
    const page = pageOf(index - fresh.length);
    return page && (page.rows ? page.rows[index - fresh.length - page.start] : null);
  }

  function pageOf(position) {
    let [low, high] = [0, pages.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (pages[middle].start <= position) low = middle;
      else high = middle - 1;
    }
    return pages[low];
  }

  function indexOf(id) {
    const index = fresh.findIndex((row) => row.id === id);
    if (index >= 0) return index;
    for (const page of pages) {
      const place = page.rows?.findIndex((row) => row.id === id) ?? -1;
      if (place >= 0) return fresh.length + page.start + place;
    }
    return -1;
  }

  function element() {
    const cells = {
      time: h("time", {}), event: h("span.event", { role: "gridcell" }), resource: h("span.resource", { role: "gridcell" }),
      related: h("span.related", { role: "gridcell" }), age: h("span.age", { role: "gridcell" }),
      head: h("span.stem"), tail: h("span.leaf"), name: h("span.res-name"), rid: h("span.res-id"),
    };
    cells.event.append(cells.head, cells.tail);
    cells.resource.append(cells.name, cells.rid);
    const made = h("div.row", { role: "row" }, h("span.time", { role: "gridcell" }, cells.time), cells.event, cells.resource, cells.related, cells.age);
    made.cells = cells;
    return made;
  }

  function write(made, row, index) {
    const { cells } = made;
    made.style.transform = `translateY(${index * rowHeight}px)`;
    mark(made, "aria-rowindex", index + 2);
    mark(made, "aria-selected", row?.id === (selected ?? opened) && row ? "true" : "false");
    mark(made, "data-open", row && row.id === opened ? "" : null);
    const id = row ? row.id : "";
    if (made.shown === id) return;
    made.shown = id;
    made.id = row ? `event-${row.id}` : "";
    mark(made, "data-blank", row ? null : "");
    if (!row) {
      for (const cell of [cells.time, cells.head, cells.tail, cells.name, cells.rid, cells.related, cells.age]) say(cell, "");
      return;
    }
    const today = new Date(row.at).toDateString() === new Date().toDateString();
    say(cells.time, today ? format.time(row.at) : `${format.date(row.at)} ${format.time(row.at)}`);
    mark(cells.time, "datetime", row.occurred);
    mark(cells.time, "title", format.utc(row.occurred));
    const cut = row.event.lastIndexOf(".") + 1;
    say(cells.head, row.event.slice(0, cut));
    say(cells.tail, row.event.slice(cut));
    mark(cells.event, "title", row.event);
    mark(made, "data-tone", tone(row.event));
    say(cells.name, row.name);
    say(cells.rid, row.resource);
    mark(cells.resource, "title", row.name ? `${row.name}  ${row.resource}` : row.resource);
    say(cells.related, row.related ? String(row.related) : "");
    say(cells.age, format.age(row.at, Date.now()));
  }

  function draw() {
    frame = 0;
    const num = numRows();
    const more = ended || failed ? 0 : 1;
    sizer.style.height = `${Math.min((num + more) * rowHeight, HIGHEST)}px`;
    const first = Math.max(0, Math.floor(scroller.scrollTop / rowHeight) - BESIDE_VIEW);
    const last = Math.min(num - 1 + more * 8, Math.ceil((scroller.scrollTop + height) / rowHeight) + BESIDE_VIEW);
    for (const [index, made] of drawn) {
      if (index >= first && index <= last) continue;
      drawn.delete(index);
      made.remove();
      if (spare.length < 50) spare.push(made);
    }
    for (let index = first; index <= last; index += 1) {
      if (index >= num && !more) break;
      let made = drawn.get(index);
      if (!made) {
        made = spare.pop() ?? element();
        drawn.set(index, made);
        sizer.append(made);
      }
      const row = index < num ? at(index) : null;
      write(made, row, index);
      if (row === null && index < num) fetchAgain(pageOf(index - fresh.length));
    }
    if (last >= num - 25 && !ended && (num + 50) * rowHeight < HIGHEST) fetchNext();
    mark(scroller, "aria-rowcount", ended ? num + 1 : -1);
    const active = selected ?? opened;
    mark(scroller, "aria-activedescendant", active && document.getElementById(`event-${active}`) ? `event-${active}` : null);
    say(pill, `↑ ${format.number(numHeld)} new ${numHeld === 1 ? "event" : "events"}`);
    pill.hidden = numHeld === 0;
  }

  function later() {
    if (!frame) frame = requestAnimationFrame(draw);
  }

  async function fetchNext() {
    if (loading || ended || failed) return;
    const mine = turn;
    const last = pages.at(-1);
    if (last && last.next === null) {
      ended = true;
      return;
    }
    const token = last?.next ?? null;
    loading = told.page(token, before);
    try {
      const got = await loading;
      if (mine !== turn) return;
      const known = pages.length ? null : new Set(fresh.map((row) => row.id));
      const rows = got.events.map(row).filter((row) => !known?.has(row.id));
      pages.push({ rows, size: rows.length, start: numPaged(), next: got.next_page ?? null, token });
      ended = got.next_page === null || got.next_page === undefined;
      evict();
    } catch (error) {
      if (mine !== turn || error.name === "AbortError") return;
      failed = error.message;
      const isRefused = error.status === 422;
      say(note, `These events cannot be read: ${failed}.${isRefused ? "" : " It is tried again."}`);
      note.hidden = false;
      if (isRefused) {
        told.refused();
        return;
      }
      setTimeout(() => {
        if (mine !== turn) return;
        failed = "";
        later();
      }, 3000);
    } finally {
      if (mine === turn) {
        loading = null;
        if (!failed) note.hidden = numRows() > 0 || !ended;
        if (!failed && numRows() === 0 && ended) say(note, "No event in this span answers to that.");
        later();
      }
    }
  }

  async function fetchAgain(page) {
    if (page.fetching) return;
    page.fetching = true;
    try {
      const got = await told.page(page.token, before);
      // What had come in between changes no page behind a token; the first is cut to what it was.
      const rows = got.events.map(row).slice(-page.size);
      if (rows.length === page.size) page.rows = rows;
      evict();
      later();
    } catch {
      // Asked for once more when it is drawn again.
      setTimeout(later, 3000);
    } finally {
      page.fetching = false;
    }
  }

  /** Lets go of the pages that are farthest from the view. */
  function evict() {
    const kept = pages.filter((page) => page.rows);
    if (kept.length <= MOST_PAGES) return;
    const middle = scroller.scrollTop / rowHeight - fresh.length;
    const distance = (page) => Math.abs(page.start + page.size / 2 - middle);
    kept.sort((a, b) => distance(b) - distance(a));
    for (const page of kept.slice(0, kept.length - MOST_PAGES)) page.rows = null;
  }

  /** Puts what has come on top; past the bound, what was searched is let go of and found again below. */
  function take(rows, isWhole) {
    fresh = isWhole ? rows.concat(fresh) : rows;
    if (!isWhole || fresh.length > MOST_FRESH) {
      fresh.length = Math.min(fresh.length, MOST_FRESH);
      before = fresh.slice(-50).reduce((a, b) => (a.at < b.at ? a : b));
      turn += 1;
      loading = null;
      failed = "";
      pages = [];
      ended = false;
    }
    note.hidden = numRows() > 0;
  }

  function release() {
    const isWhole = held.length === numHeld;
    take(held, isWhole);
    [held, numHeld] = [[], 0];
    scroller.scrollTop = 0;
    later();
  }

  function select(index) {
    const row = at(index);
    if (!row) return;
    selected = row.id;
    const top = index * rowHeight;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top + rowHeight > scroller.scrollTop + height) scroller.scrollTop = top + rowHeight - height;
    draw();
    if (opened !== null) open(selected);
  }

  function open(id) {
    selected = id;
    told.open(id);
  }

  function move(by) {
    const current = selected ?? opened;
    const index = current === null ? -1 : indexOf(current);
    select(index < 0 ? Math.floor(scroller.scrollTop / rowHeight) : Math.max(0, Math.min(numRows() - 1, index + by)));
  }

  scroller.addEventListener("scroll", () => {
    later();
    if (numHeld && !reading()) release();
  }, { passive: true });
  sizer.addEventListener("click", (event) => {
    const made = event.target.closest(".row");
    // A selection by the mouse is for copying.
    if (made?.shown && getSelection().isCollapsed) open(made.shown);
  });
  scroller.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: Math.floor(height / rowHeight), PageUp: -Math.floor(height / rowHeight), Home: -Infinity, End: Infinity }[event.key];
    if (event.target !== scroller) return;
    if (by !== undefined) move(by);
    else if (event.key === "Enter" && selected !== null) open(selected);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => {
    const measured = parseFloat(getComputedStyle(scroller).getPropertyValue("--row"));
    if (measured) rowHeight = measured;
    height = scroller.clientHeight - head.offsetHeight;
    later();
  }).observe(scroller);
  setInterval(() => {
    if (document.hidden) return;
    const now = Date.now();
    for (const [index, made] of drawn) {
      const row = index < numRows() ? at(index) : null;
      if (row) say(made.cells.age, format.age(row.at, now));
    }
  }, 1000);

  return {
    /** Begins anew: another search. */
    search({ newestFirst, isFollowing }) {
      turn += 1;
      [fresh, held, numHeld, pages] = [[], [], 0, []];
      [ended, loading, failed, before, selected] = [false, null, "", null, null];
      following = isFollowing;
      note.hidden = true;
      say(order, newestFirst ? "Time ↓" : "Time ↑");
      mark(order, "aria-label", newestFirst ? "Time, newest first; turn round" : "Time, oldest first; turn round");
      mark(scroller, "aria-label", newestFirst ? "Events, newest first" : "Events, oldest first");
      scroller.scrollTop = 0;
      draw();
    },
    /** Events that have just come, newest first. */
    come(rows) {
      if (!following || !rows.length) return;
      if (reading()) {
        numHeld += rows.length;
        held = rows.concat(held).slice(0, MOST_FRESH);
      } else take(rows, true);
      later();
    },
    /** Marks the one that is open. */
    opened(id) {
      opened = id || null;
      if (!opened && numHeld && !reading()) release();
      later();
    },
    move,
    openSelected: () => selected !== null && open(selected),
    /** Lets go of the choice, so that what comes shows again. */
    unselect() {
      if (selected === null) return false;
      selected = null;
      if (numHeld && !reading()) release();
      later();
      return true;
    },
    top() {
      selected = null;
      if (numHeld) release();
      scroller.scrollTop = 0;
      later();
    },
    focus: () => scroller.focus({ preventScroll: true }),
    say(text) {
      note.hidden = !text;
      if (text) say(note, text);
    },
    get size() {
      return numRows();
    },
    /** Whether the first page is there. */
    get isRead() {
      return pages.length > 0;
    },
    /** Whether this event is shown, or waits to be. */
    has: (id) => indexOf(id) >= 0 || held.some((row) => row.id === id),
    /** Asked for, and there is none. */
    get isBare() {
      return ended && numRows() === 0;
    },
  };
}
