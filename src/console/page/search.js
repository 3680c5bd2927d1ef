// Search: stored events, newest first, with a histogram, the services and an export.
import { json } from "./api.js";
import { h } from "./dom.js";
import { count, moment, plural } from "./format.js";
import { exportButtons } from "./export.js";
import { byService, bars, draw } from "./histogram.js";
import { isDatabaseDown, onHealth } from "./health.js";
import { list, markCurrent, refreshTimes, row, settleFocus } from "./list.js";
import { colorOf } from "./plots.js";
import { remember } from "./drawer.js";
import { parse, toParams } from "./query.js";
import { searchBox } from "./searchbox.js";
import { set, state } from "./state.js";
import { explain } from "./token.js";

const RANGES = { "15m": [900, "last 15 min"], "1h": [3600, "last hour"], "6h": [21600, "last 6 h"], "24h": [86400, "last 24 h"],
  "7d": [604800, "last 7 days"], "30d": [2592000, "last 30 days"] };
const PAGE = 100;
/// Above this range, counts by hour are fine enough.
const MINUTES_MAX_S = 3 * 3600;
const RETRY_MS = 2000;

/// The chosen range in epoch seconds.
function range() {
  if (state.from && state.to) return [Date.parse(state.from) / 1000, Date.parse(state.to) / 1000];
  const now = Date.now() / 1000;
  return [now - (RANGES[state.range] ?? RANGES["1h"])[0], now];
}

/// The range as an ISO time with milliseconds.
const iso = (seconds) => new Date(Math.round(seconds * 1000)).toISOString();

export function search(root) {
  const box = searchBox();
  const events = list("Events, newest first");
  const [notice, chart, caption, services] = [h("div", {}), h("div", { class: "chart" }), h("p", { class: "dim caption" }), h("ul", { class: "services" })];
  const status = h("span", { class: "dim", role: "status", id: "search-status" });
  const more = h("button", { type: "button", hidden: true, onclick: () => load(true) }, "Load more");
  const select = h("select", { id: "range", onchange: () => set({ range: select.value, from: "", to: "" }) });
  const out = h("button", { type: "button", onclick: () => zoomOut() }, "Zoom out");
  let [cursor, sequence, removeChart, retry, loading, params, failed] = [null, 0, null, null, false, null, false];
  const area = h("section", { class: "columns" }, h("div", { class: "aside" }, h("h3", {}, "Services"), services),
    h("div", { class: "results" }, h("div", { class: "bar" }, status, exportButtons(() => filterParams())), events, more));
  root.append(h("h2", { class: "visually-hidden" }, "Search"), box.element,
    h("div", { class: "bar" }, h("label", { for: "range" }, "Time"), select, out,
      h("button", { type: "button", onclick: () => start() }, "Refresh")),
    notice, chart, caption, area);

  function filterParams() {
    const [from, to] = range();
    const found = toParams(parse(state.q), state.service);
    found.set("from", iso(from));
    found.set("to", iso(to));
    return found;
  }

  function zoomOut() {
    const [from, to] = range();
    const half = (to - from) / 2;
    set({ from: iso(from - half), to: iso(Math.min(to + half, Date.now() / 1000)) });
  }

  function showRange() {
    const custom = state.from && state.to;
    select.replaceChildren(...Object.entries(RANGES).map(([value, [, text]]) => h("option", { value, selected: !custom && value === state.range }, text)),
      ...(custom ? [h("option", { value: "custom", selected: true }, `${moment(state.from)} – ${moment(state.to)}`)] : []));
  }

  async function loadCounts(mine) {
    const [from, to] = range();
    const query = parse(state.q);
    const one = query.service || state.service;
    const ask = async (interval) => {
      const found = await json(`/stats?${new URLSearchParams({ from: iso(from), to: iso(to), interval, ...(one && { service: one }) })}`);
      return (found.minutes ?? found.hours).map((each) => ({ ...each, start: Date.parse(each.minute ?? each.hour) / 1000 }));
    };
    try {
      let unit = to - from <= MINUTES_MAX_S ? 60 : 3600;
      // Very many services: minutes would be too many rows.
      const counts = await ask(unit === 60 ? "minute" : "hour").catch((error) => {
        if (error.kind !== "invalid" || unit === 3600) throw error;
        unit = 3600;
        return ask("hour");
      });
      if (mine !== sequence) return;
      removeChart?.();
      chart.replaceChildren();
      const made = bars(counts, from, to, unit);
      removeChart = draw(chart, made, [from, to], (start, end) => set({ from: iso(start), to: iso(Math.max(end, start + 1)) }));
      const totals = byService(counts);
      const all = totals.reduce((sum, [, n]) => sum + n, 0);
      const step = made.step < 3600 ? `${made.step / 60} min` : `${made.step / 3600} h`;
      const filtered = query.words || query.metadata.length ? " Words and metadata do not filter it." : "";
      caption.textContent = `${plural(all, "event")} of ${plural(totals.length, "service")}, bars of ${step}. Drag over it to zoom.${filtered}`;
      chart.setAttribute("role", "img");
      chart.setAttribute("aria-label", `Events over time. ${caption.textContent}`);
      services.replaceChildren(...totals.map(([name, n]) => {
        const dot = h("i", { class: "dot", "aria-hidden": "true" });
        dot.style.setProperty("--color", colorOf(name));
        const chosen = name === one;
        return h("li", {}, h("button", { type: "button", "aria-pressed": String(chosen), onclick: () => set({ service: chosen ? "" : name }) },
          dot, h("span", {}, name), h("em", {}, count(n))));
      }));
    } catch (error) {
      if (mine === sequence) caption.textContent = error.isAboutToken ? "" : `No histogram: ${error.message}`;
    }
  }

  function fail(error) {
    failed = true;
    if (error.kind === "invalid") { box.showError(error.message); status.textContent = ""; return; }
    if (error.isTemporary) {
      // The notice on top of the page has the details, if the token may read them.
      const text = isDatabaseDown() ? "The search is repeated until PostgreSQL answers."
        : `${error.kind === "database" ? "PostgreSQL is not available" : error.message.replace(/\.$/, "")}. Live goes on; the search is repeated until it is answered.`;
      notice.replaceChildren(h("div", { class: "notice warn", role: "alert", id: "away" }, h("p", {}, text)));
      clearTimeout(retry);
      retry = setTimeout(() => start(), RETRY_MS);
    } else notice.replaceChildren(explain(error));
    status.textContent = "";
  }

  async function load(older) {
    if (loading && older) return;
    loading = true;
    const mine = sequence;
    try {
      if (older) params.set("cursor", cursor);
      const page = await json(`/events?${params}`);
      if (mine !== sequence) return;
      failed = false;
      notice.replaceChildren();
      const rows = page.events.map((event) => row(event, { onOpen: remember }));
      if (older) events.append(...rows); else events.replaceChildren(...rows);
      settleFocus(events);
      cursor = page.page.next_cursor;
      more.hidden = !cursor;
      const shown = events.children.length;
      status.textContent = shown ? `${plural(shown, "event")} shown${cursor ? ", more below" : ", all that match"}` : "No event matches.";
    } catch (error) {
      if (mine === sequence) fail(error);
    } finally {
      if (mine === sequence) loading = false;
    }
  }

  function start() {
    clearTimeout(retry);
    sequence += 1;
    loading = false;
    showRange();
    const query = parse(state.q);
    if (query.errors.length) return;
    params = filterParams();
    params.set("limit", PAGE);
    params.set("count", "none");
    status.textContent = "Searching …";
    load(false);
    loadCounts(sequence);
  }

  const observer = new IntersectionObserver((seen) => { if (seen[0].isIntersecting && cursor) load(true); }, { rootMargin: "400px" });
  observer.observe(more);
  const clock = setInterval(() => { if (state.times === "relative") refreshTimes(events); }, 1000);
  let wasDown = isDatabaseDown();
  const ignoreHealth = onHealth(() => {
    const down = isDatabaseDown();
    if (wasDown && !down && failed && root.isConnected) start();
    wasDown = down;
  });
  start();
  return {
    update(_, previous) {
      const asked = ["q", "service", "range", "from", "to"].some((name) => state[name] !== previous[name]);
      if (asked) { box.sync(); start(); } else if (state.tz !== previous.tz) { showRange(); loadCounts(sequence); }
      refreshTimes(events);
      markCurrent(events);
    },
    restart: start,
    stop() { ignoreHealth(); sequence += 1; clearTimeout(retry); clearInterval(clock); observer.disconnect(); removeChart?.(); },
  };
}
