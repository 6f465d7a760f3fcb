// Messages that the parser or the database refused: why, what they hold, and what to do with them.

import { h, fill, visible, toast, mark, say, copy } from "./dom.js";
import * as format from "./format.js";
import * as api from "./api.js";
import { ask } from "./dialogs.js";

const COLUMNS = 7;

/**
 * @param {HTMLElement} root
 * @param {{changed: () => void}} told
 */
export function letters(root, told) {
  /** @type {Map<string, any>} */
  let known = new Map();
  let total = 0;
  let before = null;
  let asked = null;
  let seen = null;

  const heading = h("p.summary", { role: "status" });
  const replayButton = h("button.primary", { type: "button", onclick: () => act("replay") });
  const purgeButton = h("button.danger", { type: "button", onclick: () => act("purge") });
  const allBox = h("input", { type: "checkbox", "aria-label": "Choose all that are shown", onchange: () => choose(allBox.checked) });
  const body = h("tbody");
  const table = h("table.letters", {}, h("thead", {}, h("tr", {}, h("th.check", {}, allBox), h("th", {}, "Last seen"), h("th", {}, "Refused by"),
    h("th.wide", {}, "Reason"), h("th", {}, "Position"), h("th.num", {}, "Tries"), h("th.num", {}, "Size"))), body);
  const more = h("button", { type: "button", onclick: () => load(false) }, "Show more");
  const fresh = h("button.quiet", { type: "button", hidden: true, onclick: () => load(true) }, "More have come: show them");
  fill(root, h("div.toolbar", {}, heading, fresh, h("div.tools", {}, replayButton, purgeButton)), h("div.table-scroll", {}, table), h("div.after", {}, more));

  const boxes = () => [...body.querySelectorAll("input[type=checkbox]")];
  const chosen = () => boxes().filter((box) => box.checked).map((box) => box.value);

  function buttons() {
    const num = chosen().length;
    say(replayButton, num ? `Replay ${format.number(num)}` : "Replay all");
    say(purgeButton, num ? `Purge ${format.number(num)}` : "Purge all");
    replayButton.disabled = purgeButton.disabled = total === 0;
    allBox.indeterminate = num > 0 && num < boxes().length;
    allBox.checked = num > 0 && num === boxes().length;
    allBox.disabled = total === 0;
  }

  function choose(all) {
    for (const box of boxes()) box.checked = all;
    buttons();
  }

  function line(letter) {
    const last = Date.parse(letter.last_seen);
    const id = `letter-${letter.id}`;
    // The line counts, and is at the end of a path.
    const place = letter.position.slice(letter.position.lastIndexOf("/") + 1) || letter.position;
    const toggle = h("button.quiet.reason", { type: "button", "aria-expanded": "false", "aria-controls": id, onclick: () => open(letter, toggle, holder) },
      h("span.chevron", { "aria-hidden": "true" }, "›"), h("span", {}, visible(letter.reason)));
    const holder = h("tr.payload", { id, hidden: true }, h("td", { colspan: COLUMNS }));
    body.append(h("tr", {},
      h("td.check", {}, h("input", { type: "checkbox", value: letter.id, "aria-label": `Choose letter ${letter.id}`, onchange: buttons })),
      h("td.when", {}, h("time", { datetime: letter.last_seen, title: format.utc(letter.last_seen) }, format.moment(last))),
      h("td.by", {}, h("span.stage", { data: { stage: letter.stage } }, letter.stage === "parse" ? "parser" : "database"), letter.code ? h("code", {}, ` ${letter.code}`) : null),
      h("td.wide", {}, toggle),
      h("td.position", { title: visible(letter.position) }, visible(place)),
      h("td.num", {}, format.number(letter.attempts)), h("td.num", {}, format.bytes(letter.bytes))), holder);
  }

  async function open(letter, toggle, holder) {
    const isOpen = toggle.getAttribute("aria-expanded") === "true";
    mark(toggle, "aria-expanded", isOpen ? "false" : "true");
    holder.hidden = isOpen;
    if (isOpen || holder.firstChild.childElementCount) return;
    const cell = fill(holder.firstChild, h("p.soft", {}, "…"));
    try {
      const { message } = await api.letter(letter.id);
      const bytes = message.is_text ? "" : "Bytes that are no text are written as \\x00.";
      const part = message.is_cut || message.text.length > 20000 ? "This is the beginning." : "";
      fill(cell,
        h("dl.facts", {}, h("dt", {}, "Source"), h("dd", {}, `${letter.source}, ${visible(letter.position)}`),
          h("dt", {}, "First seen"), h("dd", { title: format.utc(letter.first_seen) }, format.moment(Date.parse(letter.first_seen))),
          h("dt", {}, "Size"), h("dd", {}, format.bytes(letter.bytes), h("span.soft", {}, ` ${part} ${bytes}`)),
          letter.event_id && h("dt", {}, "Event"), letter.event_id && h("dd.mono", {}, letter.event_id)),
        h("pre", { tabindex: 0, role: "region", "aria-label": "The message" }, visible(message.text).replaceAll("\\n", "\n").slice(0, 20000)),
        h("div.actions", {}, h("button", { type: "button", onclick: () => copy(message.text, "Message") }, "Copy message"),
          h("button", { type: "button", onclick: () => act("replay", [letter.id]) }, "Replay this one"),
          h("button.danger", { type: "button", onclick: () => act("purge", [letter.id]) }, "Purge this one")));
    } catch (error) {
      fill(cell, h("p.soft", {}, `The message cannot be read: ${error.message}.`));
    }
  }

  async function act(what, ids = chosen()) {
    const num = ids.length || total;
    const them = `${ids.length ? "" : "all "}${format.number(num)} dead ${num === 1 ? "letter" : "letters"}`;
    const sure = await ask(what === "replay"
      ? { title: `Replay ${them}?`, text: "Each goes through the pipeline again. Those that are stored are letters no longer; those that are refused again stay, with the newest reason.", yes: "Replay" }
      : { title: `Purge ${them}?`, text: "They are thrown away, for good. Nothing else has these messages.", yes: "Purge", danger: true });
    if (!sure) return;
    // What has come since nobody has seen: `all` means as far as the newest that is shown.
    const which = ids.length ? { ids } : { through: seen };
    try {
      const done = await api[what](which);
      toast(what === "purge" ? `${format.number(done.purged)} purged`
        : `${format.number(done.stored)} stored, ${format.number(done.duplicates)} there already, ${format.number(done.still_refused)} refused again`);
    } catch (error) {
      toast(`Not done: ${error.message}`);
    }
    await load(true);
    told.changed();
  }

  async function load(anew) {
    if (asked) return;
    asked = new AbortController();
    mark(root, "aria-busy", "true");
    try {
      const got = await api.letters(anew ? null : before, asked.signal);
      if (anew) {
        known = new Map();
        body.replaceChildren();
        seen = got.letters[0]?.id ?? null;
        fresh.hidden = true;
      }
      total = got.total;
      before = got.next;
      for (const letter of got.letters) {
        if (!known.has(letter.id)) line(letter);
        known.set(letter.id, letter);
      }
      more.hidden = before === null;
      table.hidden = total === 0;
      say(heading, total ? `${format.number(total)} ${total === 1 ? "message was" : "messages were"} refused, and kept with the reason.`
        : "No dead letters. What the parser or the database refuses is kept here, with the reason.");
    } catch (error) {
      if (error.name !== "AbortError") say(heading, `The dead letters cannot be read: ${error.message}.`);
    } finally {
      asked = null;
      mark(root, "aria-busy", null);
      buttons();
    }
  }

  buttons();
  return {
    show: () => load(true),
    /** How many there are now, where that is known: says so, and moves nothing. */
    count(num) {
      if (num === null || num === total || asked) return;
      if (known.size === 0) load(true);
      else fresh.hidden = false;
    },
  };
}
