// The drawer: one event whole, with its receipt, filters, and the events before and after it.
import { json } from "./api.js";
import { byId, copy, h } from "./dom.js";
import { moment, relative, time } from "./format.js";
import { metadataFilter } from "./query.js";
import { set, state } from "./state.js";
import { explain } from "./token.js";

const AROUND = 5;
const RECEIPTS = {
  stored: ["good", "It is in the database."],
  buffered: ["warn", "It is accepted and in the buffer or the journal, and not yet in the database."],
  dead: ["bad", "The database refused it; it is a dead letter."],
  missing: ["bad", "No event with this id is stored, buffered or dead here."],
  admitted: ["", "The tail has shown it; its receipt is not known yet."],
};
let known = null;
let sequence = 0;
let returnTo = null;

/// Remembers an event that a list shows, so that the drawer is filled at once and in an outage.
export function remember(event) { known = event; }

function receipt(status, extra) {
  const [tone, text] = RECEIPTS[status];
  return h("p", { class: "receipt", data: { status } }, h("b", { class: tone }, status === "missing" ? "not found" : status), " ", text, extra ? ` ${extra}` : "");
}

/// Adds a filter to the box of Search.
function addFilter(text) {
  const filters = state.tab === "search" || state.tab === "live" ? state.q : "";
  set({ tab: state.tab === "live" ? "live" : "search", q: filters.includes(text) ? filters : `${filters} ${text}`.trim(), event: "" });
}

function member(key, value, filter) {
  const shown = typeof value === "string" ? value : JSON.stringify(value);
  const canFilter = filter && (value === null || typeof value !== "object");
  return [h("dt", {}, key), h("dd", {}, h("span", {}, shown),
    canFilter && h("button", { type: "button", class: "small", "aria-label": `filter by this: ${key} ${shown}`, onclick: filter }, "filter by this"))];
}

/// One microsecond after an RFC 3339 time, so that `to` includes it.
function justAfter(timestamp) {
  const micros = BigInt(Math.floor(Date.parse(timestamp) / 1000)) * 1_000_000n
    + BigInt((/\.(\d+)/.exec(timestamp)?.[1] ?? "0").padEnd(6, "0").slice(0, 6)) + 1n;
  const second = new Date(Number(micros / 1_000_000n) * 1000).toISOString().slice(0, 19);
  return `${second}.${String(micros % 1_000_000n).padStart(6, "0")}Z`;
}

async function showAround(event, box) {
  const page = (params) => json(`/events?${new URLSearchParams({ service: event.service, count: "none", ...params })}`);
  const day = 86_400_000;
  try {
    const [before, after] = await Promise.all([
      page({ to: justAfter(event.timestamp), order: "desc", limit: AROUND + 1 }),
      page({ from: event.timestamp, to: new Date(Math.max(Date.now(), Date.parse(event.timestamp)) + day).toISOString(), order: "asc", limit: AROUND + 1 }),
    ]);
    const events = new Map();
    for (const found of [...after.events.toReversed(), ...before.events]) events.set(found.event_id, found);
    const lines = [...events.values()].map((found) => h("li", {},
      h("button", { type: "button", class: "line", "aria-current": found.event_id === event.event_id ? "true" : null,
        onclick: () => { remember(found); set({ event: found.event_id }); } },
      h("time", { datetime: found.timestamp }, time(found.timestamp)), h("span", {}, found.message))));
    box.replaceChildren(h("p", { class: "dim" }, `Of ${event.service}, newest first.`), h("ol", { class: "around" }, lines));
  } catch (error) {
    box.replaceChildren(explain(error));
  }
}

function render(id, event, status, extra) {
  const drawer = byId("drawer");
  const body = [];
  if (event) {
    const text = JSON.stringify(event, null, 2);
    const copyJson = h("button", { type: "button", onclick: () => copy(text, copyJson) }, "Copy JSON");
    const copyLink = h("button", { type: "button", onclick: () => copy(location.href, copyLink) }, "Copy link");
    const around = h("div", {});
    body.push(
      h("p", { class: "message" }, event.message),
      h("dl", {},
        member("time", `${moment(event.timestamp)} · ${relative(new Date(event.timestamp))}`),
        member("service", event.service, () => set({ tab: state.tab === "live" ? "live" : "search", service: event.service, event: "" })),
        Object.entries(event.metadata ?? {}).map(([key, value]) => member(key, value, () => addFilter(metadataFilter(key, value))))),
      h("div", { class: "buttons" }, copyJson, copyLink,
        h("button", { type: "button", onclick: () => showAround(event, around) }, "Before and after")),
      around,
      h("h3", {}, "JSON"), h("pre", { tabindex: "0", "aria-label": "The event as JSON" }, text));
  }
  drawer.replaceChildren(
    h("div", { class: "head" }, h("h2", {}, "Event"), h("code", {}, id),
      h("button", { type: "button", class: "close", "aria-label": "Close the event", onclick: close }, "Close")),
    status ? receipt(status, extra) : h("p", { class: "dim" }, "Loading …"), ...body);
}

export function close() { set({ event: "" }); }

/// Shows the event that the state names, or hides the drawer.
export async function update() {
  const drawer = byId("drawer");
  const id = state.event;
  const mine = (sequence += 1);
  if (!id) {
    if (!drawer.hidden) {
      drawer.hidden = true;
      if (returnTo?.isConnected) returnTo.focus();
    }
    return;
  }
  if (drawer.hidden) returnTo = document.activeElement;
  const shown = known?.event_id === id ? known : null;
  render(id, shown, shown ? "admitted" : null);
  drawer.hidden = false;
  drawer.querySelector(".close").focus();
  try {
    const found = await json(`/events/${encodeURIComponent(id)}`);
    if (mine !== sequence) return;
    const { status, reason, sqlstate, ...event } = found;
    // A dead letter has no event in its receipt.
    render(id, status === "dead" ? shown : event, status, status === "dead" ? `${reason} (SQLSTATE ${sqlstate})` : "");
  } catch (error) {
    if (mine !== sequence) return;
    if (error.kind === "missing") render(id, shown, "missing");
    else drawer.append(explain(error));
  }
  if (!drawer.contains(document.activeElement)) drawer.querySelector(".close").focus();
}

export function startDrawer() {
  addEventListener("keydown", (key) => {
    if (key.key === "Escape" && state.event && !document.querySelector("dialog[open]")) close();
  });
}
