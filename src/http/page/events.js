// The events' view: what the address says becomes questions, and what is pressed becomes an address.

import { h, byId, fill, say, mark, announce } from "./dom.js";
import * as format from "./format.js";
import * as api from "./api.js";
import * as address from "./address.js";
import { follow } from "./live.js";
import { histogram, plan } from "./histogram.js";
import { names } from "./names.js";
import { list, row } from "./list.js";
import { detail } from "./detail.js";
import { empty } from "./empty.js";

/** How often what has come is shown: often enough to feel live, seldom enough to be read. */
const SHOW_EVERY = 250;
/** How often all is counted again, since others write too, and late ones come. */
const COUNT_EVERY = 20000;
/** The same while more events come than are shown live. */
const COUNT_MISSED_EVERY = 5000;
/** A pause in typing. */
const TYPED = 300;
/** The time in which the service takes in what is to be followed. */
const CATCH_UP_AFTER = 500;
/** Events that occurred longer ago are not told live. */
const FOLLOWED_FOR = 15 * 60 * 1000;
/** How many of the last live events are remembered, against seeing one twice. */
const REMEMBERED = 2000;

export function events() {
  let chosen = address.read();
  let searched = "";
  let asked = new AbortController();
  let unfollow = null;
  let base = null;
  let oldest = null;
  let coming = [];
  let named = [];
  let missed = 0;
  let counted = 0;
  let recent = new Set();
  let emptied = null;
  const zooms = [];

  const bars = histogram(byId("histogram"), { zoom, out: zoomOut });
  const top = names(byId("names"), { choose: (name) => address.go({ event: name, id: "" }), look });
  const rows = list(byId("list"), {
    open: (id) => address.go({ id }, { replace: true }),
    page: (next, before) => (next === null ? api.firstPage(before ? { ...base, occurred: { ...base.occurred, until: before.occurred } } : base, asked.signal) : api.nextPage(next, asked.signal)),
    refused: () => {
      // It would be refused again: nothing is asked for until there is another search.
      base = null;
      stopFollowing();
      mark(byId("live"), "data-state", null);
    },
    order: () => address.go({ order: chosen.order === "desc" ? "asc" : "desc" }),
  });
  const one = detail(byId("detail"), { close, move: (by) => rows.move(by) });

  function zoom({ since, until }) {
    zooms.push({ last: chosen.last, since: chosen.since, until: chosen.until, live: chosen.live });
    address.go({ since, until, last: "" });
    announce(`Zoomed to ${format.span(since, until)}`);
  }

  /** Back to where the zoom came from, or to three times as much where a link led right into it. */
  function zoomOut() {
    const before = zooms.pop();
    if (before) address.go(before);
    else if (chosen.since !== null) {
      const width = chosen.until - chosen.since;
      const until = Math.min(Date.now(), chosen.until + width);
      address.go({ since: until - 3 * width, until });
    } else {
      const wider = Object.keys(address.SPANS);
      const next = wider[wider.indexOf(chosen.last) + 1];
      if (next) address.go({ last: next });
    }
  }

  async function look(name) {
    if (name === null) {
      bars.share(null);
      return;
    }
    const cut = bars.plan;
    try {
      bars.share(await api.countByTime({ ...base, event: { name: [name] }, occurred: between(cut) }, cut.unit, cut.interval, asked.signal));
    } catch {
      // It was only a look.
    }
  }

  const between = ({ since, until }) => address.within({ since, until: until - 1 });

  function close() {
    address.go({ id: "" }, { replace: true });
    rows.focus();
  }

  async function count() {
    const cut = plan(address.spanOf(chosen, oldest));
    const filter = { ...base, occurred: between(cut) };
    const mine = asked;
    counted = Date.now();
    bars.busy(true);
    try {
      const [times, kinds] = await Promise.all([
        api.countByTime(filter, cut.unit, cut.interval, mine.signal),
        api.countByEvent(filter, cut.unit, cut.interval, mine.signal),
      ]);
      if (mine !== asked) return;
      bars.show(cut, times);
      const known = top.show(kinds);
      fill(byId("known-names"), ...known.slice(0, 50).map(({ value }) => h("option", { value })));
    } catch (error) {
      // A lost connection has its own place to be told; what was counted before it stays.
      if (mine !== asked || error.name === "AbortError" || !error.status || error.status === 401) return;
      bars.fail(error.message);
      // Those are of the search before.
      if (error.status === 422) top.clear();
    } finally {
      if (mine === asked) bars.busy(false);
    }
  }

  function stopFollowing() {
    unfollow?.();
    unfollow = null;
  }

  function watch() {
    stopFollowing();
    [coming, named, missed] = [[], [], 0];
    if (!chosen.live) return;
    const live = byId("live");
    unfollow = follow(address.filterOf({ ...chosen, order: "asc" }), {
      event: come,
      missed: (num) => (missed += num),
      state: (isOpen) => {
        mark(live, "data-state", isOpen ? "open" : "lost");
        if (isOpen) setTimeout(catchUp, CATCH_UP_AFTER, asked);
      },
    });
  }

  function come(event) {
    // At a change of connection the same event may come once more.
    if (recent.has(event.id)) return;
    recent.add(event.id);
    if (recent.size > REMEMBERED) recent.delete(recent.values().next().value);
    coming.push(row(event));
    named.push(event.event);
  }

  /** What was stored between the last answer and the first live event, or while the connection was lost. */
  async function catchUp(mine) {
    if (mine !== asked || !base) return;
    try {
      const since = Math.max(address.spanOf(chosen, oldest).since, Date.now() - FOLLOWED_FOR);
      const filter = address.filterWithin({ ...chosen, order: "desc" }, { since, until: Date.now() });
      const { events: last } = await api.firstPage(filter, mine.signal);
      if (mine !== asked || !rows.isRead) return;
      const unknown = last.filter((event) => !rows.has(event.id));
      if (unknown.length) setTimeout(count, 2 * SHOW_EVERY);
      unknown.reverse().forEach(come);
    } catch {
      // The connection has its own place to be told as lost, and comes back.
    }
  }

  setInterval(() => {
    if (!coming.length && !missed) return;
    const arrived = coming.reverse();
    coming = [];
    if (emptied) leaveEmpty();
    for (const { at } of arrived) bars.add(at);
    top.add(named);
    named = [];
    rows.come(arrived);
    // What this page was too slow for is in the database: it is counted again, and searched for.
    if (missed && Date.now() - counted > COUNT_MISSED_EVERY) {
      announce(`${format.number(missed)} events were too many to be shown live`);
      missed = 0;
      count();
    }
  }, SHOW_EVERY);

  setInterval(() => {
    if (document.hidden || chosen.view !== "events" || chosen.last === "" || !base) return;
    bars.slide(plan(address.spanOf(chosen, oldest)));
  }, 1000);

  setInterval(() => {
    if (!document.hidden && chosen.view === "events" && chosen.last !== "" && base) count();
  }, COUNT_EVERY);

  // Until somebody has signed in, every attempt would fail.
  api.connection.addEventListener("unauthorized", stopFollowing);

  function leaveEmpty() {
    emptied.remove();
    emptied = null;
    byId("events").hidden = byId("filters").hidden = false;
    document.querySelector(".over-time").hidden = false;
    search();
  }

  function search() {
    asked.abort();
    asked = new AbortController();
    recent = new Set();
    base = address.filterWithin(chosen, address.spanOf(chosen, oldest));
    // Followed before it is read: nothing falls between the two.
    watch();
    rows.search({ newestFirst: chosen.order === "desc", isFollowing: chosen.live });
    count();
  }

  const spans = [...byId("spans").children];
  for (const button of spans) {
    button.addEventListener("click", () => {
      zooms.length = 0;
      address.go({ last: button.dataset.last, since: null, until: null, live: true });
    });
  }
  const custom = h("span.custom");
  byId("spans").append(custom);

  const fields = ["text", "event", "resource", "label"].map((word) => byId(`f-${word}`));
  const written = () => Object.fromEntries(fields.map((field) => [field.name, field.value]));
  let typing = 0;
  const form = byId("filters");
  const submit = (replace) => {
    clearTimeout(typing);
    address.go(written(), { replace });
  };
  form.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(submit, TYPED, true);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(false);
    rows.focus();
  });
  byId("live").addEventListener("click", () => address.go({ live: !chosen.live, ...(chosen.last === "" ? { last: "1h", since: null, until: null } : {}), order: "desc" }));
  byId("more").addEventListener("click", (event) => {
    const isOpen = form.toggleAttribute("data-more");
    mark(event.currentTarget, "aria-expanded", isOpen ? "true" : "false");
  });

  function drawForm() {
    for (const field of fields) if (field !== document.activeElement || !typing) field.value = chosen[field.name];
    for (const button of spans) mark(button, "aria-pressed", button.dataset.last === chosen.last ? "true" : "false");
    say(custom, chosen.since === null ? "" : format.span(chosen.since, chosen.until));
    mark(byId("live"), "aria-pressed", chosen.live ? "true" : "false");
    mark(byId("live"), "data-state", chosen.live ? byId("live").dataset.state ?? null : null);
    const wrongLabel = chosen.label.trim() && !/^[^=]+=/.test(chosen.label.trim());
    byId("f-label").setCustomValidity(wrongLabel ? "key=value" : "");
    mark(byId("f-label"), "aria-invalid", wrongLabel ? "true" : null);
    bars.canZoomOut(chosen.since !== null || chosen.last !== "all");
  }

  return {
    /** The address has changed. */
    show(next) {
      chosen = next;
      drawForm();
      const { id, view, ...question } = next;
      if (view === "events" && JSON.stringify(question) !== searched) {
        searched = JSON.stringify(question);
        search();
      }
      one.show(view === "events" ? id : "");
      rows.opened(view === "events" ? id : "");
      mark(byId("events"), "data-open", id ? "" : null);
    },
    /** Begins anew: signed in, or back after a while. */
    again: search,
    /** What is known of the database. */
    know({ flow, service, stream }) {
      const first = flow.database.oldest ? Date.parse(flow.database.oldest) : null;
      const wasUnknown = oldest === null;
      oldest = first;
      if (wasUnknown && first !== null && chosen.last === "all" && base) search();
      const isEmpty = flow.database.events === 0 && !flow.database.is_estimate && rows.size === 0;
      if (isEmpty && !emptied && !address.isNarrowed(chosen)) {
        emptied = empty({ hasAuth: service.has_auth, hasStream: Boolean(stream) });
        byId("view-events").append(emptied);
        byId("events").hidden = byId("filters").hidden = true;
        document.querySelector(".over-time").hidden = true;
      } else if (!isEmpty && emptied) leaveEmpty();
      else if (!isEmpty && rows.isBare && first !== null && !address.isNarrowed(chosen)) {
        rows.say(`Nothing in this span. The newest event occurred ${format.ago(Date.parse(flow.database.newest), Date.now())}.`);
      }
    },
    key(key) {
      if (key === "/") byId("f-text").focus();
      else if (key === "j" || key === "k") {
        rows.move(key === "j" ? 1 : -1);
        rows.focus();
      } else if (key === "Enter") rows.openSelected();
      else if (key === "n") rows.top();
      else if (key === "l") byId("live").click();
      else if (key === "h") document.querySelector(".plot").focus();
      else if (key === "-") zoomOut();
      else if (key === "x") address.go({ text: "", event: "", resource: "", label: "" });
      else if (key === "Escape") {
        if (one.isOpen) close();
        else if (!rows.unselect()) return false;
      } else return false;
      return true;
    },
  };
}
