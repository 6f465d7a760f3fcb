// How numbers and times read. Locale and zone are the person's.

const whole = new Intl.NumberFormat();
const tenths = new Intl.NumberFormat(undefined, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });

/** `1,000,123`, and a dash for what is not known. */
export const number = (value) => (value === null || value === undefined ? "–" : whole.format(value));

/** `1M`, for axes and badges. */
export const compact = (value) => (value < 10000 ? whole.format(value) : short.format(value));

/** Events a second: one decimal as long as it says something. */
export const rate = (value) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  return value < 10 ? tenths.format(value) : whole.format(Math.round(value));
};

/** `1.5 MiB`, in the units of the settings. */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let left = value;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    const isWhole = unit === "B" || left >= 100 || Number.isInteger(left);
    if (left < 1000) return `${isWhole ? whole.format(Math.round(left)) : tenths.format(left)} ${unit}`;
    left /= 1024;
  }
  return `${tenths.format(left)} TiB`;
}

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/** A length of time in its largest two units: `2 d 4 h`, `850 ms`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${tenths.format(seconds)} s`;
  let left = Math.round(seconds);
  const parts = [];
  for (const [unit, size] of UNITS) {
    const count = Math.floor(left / size);
    if (count > 0) parts.push(`${count} ${unit}`);
    else if (parts.length) break;
    left -= count * size;
    if (parts.length === 2) break;
  }
  return parts.join(" ") || "0 s";
}

/** Two of them, with the unit once where it is the same: `16, 128 ms`. */
export function durations(first, second, between) {
  const [left, right] = [duration(first), duration(second)];
  const unit = right.slice(right.lastIndexOf(" "));
  return `${left.endsWith(unit) ? left.slice(0, -unit.length) : left}${between}${right}`;
}

/** How long ago, in one unit: `3 min`. A clock that is ahead is no age. */
export function age(millis, now) {
  const seconds = (now - millis) / 1000;
  if (seconds < -1) return "ahead";
  if (seconds < 1) return "now";
  for (const [unit, size] of UNITS) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return "now";
}

/** The same within a sentence: `3 min ago`. */
export function ago(millis, now) {
  const passed = age(millis, now);
  if (passed === "ahead") return "in the future";
  return passed === "now" ? "just now" : `${passed} ago`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23" });
const minute = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const second = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const dayAndYear = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", year: "numeric" });

/** `19:02:11.123` */
export const time = (millis) => clock.format(millis);

/** `Nov 28`, with the year where it is another one. */
export function date(millis) {
  const sameYear = new Date(millis).getFullYear() === new Date().getFullYear();
  return (sameYear ? day : dayAndYear).format(millis);
}

/** `Nov 28 19:02:11` */
export const moment = (millis) => `${date(millis)} ${second.format(millis)}`;

/** What stands under a bar: as fine as the bars are. */
export function tick(millis, step) {
  if (step >= 86400e3) return date(millis);
  return step < 60e3 ? second.format(millis) : minute.format(millis);
}

/** For hovering: the moment in UTC, to the microsecond as it was sent. */
export const utc = (text) => `${String(text).replace("T", " ").replace(/(\+00:00|Z)$/, "")} UTC`;

/** A span: `19:00 – 19:30`, with days where they differ or are not today. */
export function span(since, until) {
  const sameDay = date(since) === date(until);
  const today = date(since) === date(Date.now());
  const fine = until - since < 600e3 ? second : minute;
  if (sameDay) return `${today ? "" : `${date(since)} `}${fine.format(since)} – ${fine.format(until)}`;
  return `${date(since)} ${fine.format(since)} – ${date(until)} ${fine.format(until)}`;
}
