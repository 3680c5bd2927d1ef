// The list of events that Live and Search share: rows with one in the focus order, moved by the arrow keys.
import { h } from "./dom.js";
import { time } from "./format.js";
import { set, state } from "./state.js";
import { colorOf } from "./plots.js";

const METADATA_CHARS_MAX = 400;

function metadataText(metadata) {
  if (metadata == null) return "";
  const text = Object.entries(metadata).map(([key, value]) =>
    `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`).join("  ");
  return text.length > METADATA_CHARS_MAX ? `${text.slice(0, METADATA_CHARS_MAX)}…` : text;
}

/// A row. `event.event_id` leads to the drawer.
export function row(event, { onOpen } = {}) {
  const dot = h("i", { class: "dot", "aria-hidden": "true" });
  dot.style.setProperty("--color", colorOf(event.service));
  const line = h("div", { class: "row", role: "button", tabindex: "-1", "aria-haspopup": "dialog", data: { id: event.event_id } },
    h("time", { class: "time", datetime: event.timestamp, title: event.timestamp }, time(event.timestamp)),
    h("span", { class: "service" }, dot, event.service),
    h("span", { class: "message" }, event.message),
    h("span", { class: "metadata" }, metadataText(event.metadata)));
  line.entry = event;
  const open = () => {
    onOpen?.(event);
    set({ event: event.event_id });
  };
  line.addEventListener("click", () => { if (!String(getSelection())) open(); });
  line.addEventListener("keydown", (key) => {
    if (key.key === "Enter" || key.key === " ") { key.preventDefault(); open(); }
  });
  if (state.event === event.event_id) line.setAttribute("aria-current", "true");
  return h("li", {}, line);
}

/// A list whose rows are reached by one Tab and then by the arrow keys, Home and End.
export function list(label) {
  const element = h("ol", { class: "events", "aria-label": label });
  element.addEventListener("keydown", (key) => {
    const rows = [...element.querySelectorAll(".row")];
    const at = rows.indexOf(document.activeElement);
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 };
    const to = rows[steps[key.key]];
    if (at < 0 || !to) return;
    key.preventDefault();
    for (const other of element.querySelectorAll('.row[tabindex="0"]')) other.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
  return element;
}

/// Keeps one row in the focus order.
export function settleFocus(element) {
  if (element.querySelector('.row[tabindex="0"]')) return;
  const first = element.querySelector(".row");
  if (first) first.tabIndex = 0;
}

/// Writes the times again: the zone or the form has changed, or relative times have grown.
export function refreshTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const text = time(element.dateTime);
    if (element.textContent !== text) element.textContent = text;
  }
}

export function markCurrent(root) {
  for (const line of root.querySelectorAll(".row")) {
    if (line.dataset.id === state.event) line.setAttribute("aria-current", "true");
    else line.removeAttribute("aria-current");
  }
}
