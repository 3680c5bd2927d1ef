// Numbers, bytes, durations and times as text.
import { state } from "./state.js";

const number = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
export const count = (n) => number.format(n);
export const short = (n) => compact.format(n);

export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

export function rate(n) {
  return n < 10 ? n.toFixed(1) : count(Math.round(n));
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) { n /= 1024; unit += 1; }
  return `${n.toFixed(unit && n < 100 ? 1 : 0)} ${units[unit]}`;
}

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const [d, hours, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  return d ? `${d} d ${hours} h` : hours ? `${hours} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}

const zone = () => (state.tz === "utc" ? "UTC" : undefined);
const TIME = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const formats = new Map();

function formatter(options) {
  const key = JSON.stringify([zone(), options]);
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat("sv-SE", { ...options, timeZone: zone() }));
  return formats.get(key);
}

const TODAY = { year: "numeric", month: "2-digit", day: "2-digit" };

/// The time of an event: with the date unless it is today.
export function time(text) {
  const date = new Date(text);
  if (state.times === "relative") return relative(date);
  const isToday = formatter(TODAY).format(date) === formatter(TODAY).format(new Date());
  const shown = formatter(isToday ? TIME : { ...TODAY, ...TIME }).format(date);
  return `${shown}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

export function relative(date) {
  const seconds = (Date.now() - date) / 1000;
  if (seconds < -1) return `in ${duration(-seconds)}`;
  return seconds < 1 ? "now" : `${duration(seconds)} ago`;
}

/// A point in time with date and zone.
export function moment(value) {
  return `${formatter({ ...TODAY, ...TIME }).format(new Date(value))}${state.tz === "utc" ? " UTC" : ""}`;
}

/// A clock time, for sentences about the current day.
export const clock = (value) => formatter(TIME).format(new Date(value));
