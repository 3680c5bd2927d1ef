// Live: the events as the server admits them, also while the database is away.
import { json } from "./api.js";
import { h } from "./dom.js";
import { count, plural, rate } from "./format.js";
import { health, onHealth } from "./health.js";
import { list, markCurrent, refreshTimes, row, settleFocus } from "./list.js";
import { remember } from "./drawer.js";
import { parse, toParams } from "./query.js";
import { searchBox } from "./searchbox.js";
import { state } from "./state.js";
import { follow } from "./tail.js";
import { explain } from "./token.js";

const ROWS_MAX = 500;
/// Rows that are drawn in one frame; of more, the older ones are not drawn.
const FRAME_ROWS_MAX = 200;
const STORED_FIRST = 50;
/// Why missed events may be missing.
const GAPS = {
  "too-many": "more were missed than are sent again",
  "database-unavailable": "the database is unavailable",
  "journal-unavailable": "the journal cannot be read",
  "unknown-id": "the last event shown is not stored",
  "queries-full": "the server has too many queries",
};

export function live(root) {
  const box = searchBox();
  const events = list("Events as they arrive, newest first");
  const notice = h("div", {});
  const status = h("span", { class: "dim", role: "status", id: "live-status" });
  const speed = h("span", { class: "dim number" });
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => setPaused(!paused) }, "Pause");
  const clear = h("button", { type: "button", onclick: () => { events.replaceChildren(); skipped = 0; showStatus(); } }, "Clear");
  root.append(h("h2", { class: "visually-hidden" }, "Live"), box.element,
    h("div", { class: "bar" }, pause, clear, status, speed), notice, events);

  /// `server` is the name of the server whose tail is open.
  let [tail, paused, waiting, skipped, frame, server] = [null, false, [], 0, 0, ""];
  let shownIds = new Set();

  function showStatus() {
    const parts = [server ? `Connected to ${server}` : "Connecting …"];
    if (paused) parts[0] = `Paused, ${plural(waiting.length, "new event")}`;
    if (skipped) parts.push(`${plural(skipped, "event")} skipped`);
    status.textContent = parts.join(" · ");
  }

  function setPaused(to) {
    paused = to;
    pause.textContent = paused ? "Resume" : "Pause";
    pause.setAttribute("aria-pressed", String(paused));
    schedule();
  }

  function schedule() {
    if (paused) { showStatus(); return; }
    frame ||= setTimeout(() => { frame = 0; requestAnimationFrame(drawRows); }, 50);
  }

  function drawRows() {
    if (paused) return;
    const batch = waiting.splice(0).slice(-FRAME_ROWS_MAX).reverse();
    if (batch.length) {
      events.prepend(...batch.map((entry) => (entry.note
        ? h("li", { class: "skipped" }, entry.note) : row(entry, { onOpen: remember }))));
      while (events.children.length > ROWS_MAX) events.lastElementChild.remove();
      settleFocus(events);
    }
    showStatus();
  }

  function push(entry) {
    waiting.push(entry);
    if (waiting.length > ROWS_MAX) waiting.shift();
    schedule();
  }

  /// The newest stored events first, so that a quiet server shows something.
  async function loadStored(params) {
    try {
      const page = await json(`/events?${new URLSearchParams([...params, ["limit", STORED_FIRST], ["count", "none"]])}`);
      const rows = page.events.filter((event) => !shownIds.has(event.event_id)).map((event) => row(event, { onOpen: remember }));
      if (rows.length) events.append(h("li", { class: "divider" }, "Stored before"), ...rows);
      settleFocus(events);
    } catch { /* The tail goes on without them; its own error is shown. */ }
  }

  function start() {
    tail?.stop();
    events.replaceChildren();
    notice.replaceChildren();
    [waiting, skipped, server, shownIds] = [[], 0, "", new Set()];
    const query = parse(box.applied());
    showStatus();
    if (query.errors.length) return;
    const params = toParams(query, state.service);
    tail = follow(params, {
      open(name) { server = name; notice.replaceChildren(); showStatus(); },
      event(event) {
        if (shownIds.size < ROWS_MAX) shownIds.add(event.event_id);
        push(event);
      },
      skipped(n) {
        skipped += n;
        push({ note: `${plural(n, "event")} of any service skipped here: they arrived faster than this page reads` });
      },
      gap(reason) { push({ note: `Events may be missing here: ${GAPS[reason] ?? reason}` }); },
      failed(error) {
        server = "";
        if (error) notice.replaceChildren(explain(error));
        showStatus();
      },
    });
    loadStored(params);
  }

  const ignoreHealth = onHealth(() => {
    const incoming = health.samples.at(-1)?.incoming;
    speed.textContent = incoming == null ? "" : `${rate(incoming)} events/s came in · ${count(health.detailed?.ledger.buffered ?? 0)} buffered`;
  });
  const clock = setInterval(() => { if (state.times === "relative") refreshTimes(events); }, 1000);
  start();
  return {
    update(_, previous) {
      if (state.q !== previous.q || state.service !== previous.service) { box.sync(); start(); }
      refreshTimes(events);
      markCurrent(events);
    },
    restart: start,
    stop() { ignoreHealth(); tail?.stop(); clearInterval(clock); clearTimeout(frame); },
  };
}
