// Follows `GET /events/tail` by fetch, since an EventSource cannot send a token. Opens it again after an end,
// from the last event on.
import { request } from "./api.js";

const RETRY_MS = 2000;
/// Ids by which the repeats of a resumed tail are recognized: more than it sends at most.
const SEEN_MAX = 10_000;

/// Parses server-sent events out of pieces of text; returns the rest that is not complete.
export function parseEvents(text, emit) {
  const blocks = text.split("\n\n");
  for (const block of blocks.slice(0, -1)) {
    const event = { type: "message", data: "" };
    for (const line of block.split("\n")) {
      if (line.startsWith("id: ")) event.id = line.slice(4);
      if (line.startsWith("event: ")) event.type = line.slice(7);
      if (line.startsWith("data: ")) event.data += line.slice(6);
    }
    if (event.data) emit(event);
  }
  return blocks.at(-1);
}

/// Follows the tail until `stop()` is called. `on`: `open` with the name of the server, `event`, `skipped`
/// with a number of events, `gap` with a reason, `failed`.
export function follow(params, on) {
  const abort = new AbortController();
  const seen = new Set();
  let [timer, lastId] = [null, null];
  function emit({ id, type, data }) {
    const content = JSON.parse(data);
    if (type === "tail") on.open(content.instance);
    else if (type === "skipped") on.skipped(content.events);
    else if (type === "gap") on.gap(content.reason);
    else if (type === "message") {
      lastId = id;
      if (seen.has(id)) return;
      seen.add(id);
      if (seen.size > SEEN_MAX) seen.delete(seen.values().next().value);
      on.event(content);
    }
  }
  async function run() {
    let error = null;
    try {
      const headers = lastId ? { "Last-Event-ID": lastId } : {};
      const reply = await request(`/events/tail?${params}`, { accept: "text/event-stream", headers, signal: abort.signal });
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        rest = parseEvents(rest + value, emit);
      }
    } catch (caught) {
      error = caught;
    }
    if (abort.signal.aborted) return;
    on.failed(error);
    if (!error || error.isTemporary !== false) timer = setTimeout(run, RETRY_MS);
  }
  run();
  return { stop() { abort.abort(); clearTimeout(timer); } };
}
