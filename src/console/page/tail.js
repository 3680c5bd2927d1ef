// Follows `GET /events/tail` by fetch, since an EventSource cannot send a token. Opens it again after an end.
import { request } from "./api.js";

const RETRY_MS = 2000;

/// Parses server-sent events out of pieces of text; returns the rest that is not complete.
export function parseEvents(text, emit) {
  const blocks = text.split("\n\n");
  for (const block of blocks.slice(0, -1)) {
    const event = { type: "message", data: "" };
    for (const line of block.split("\n")) {
      if (line.startsWith("event: ")) event.type = line.slice(7);
      if (line.startsWith("data: ")) event.data += line.slice(6);
    }
    if (event.data) emit(event);
  }
  return blocks.at(-1);
}

/// Follows the tail until `stop()` is called. `on`: `open`, `event`, `skipped`, `failed`.
export function follow(params, on) {
  const abort = new AbortController();
  let timer = null;
  const emit = ({ type, data }) => {
    // Other types tell about the tail, not of events.
    if (type === "skipped") on.skipped(JSON.parse(data).events);
    else if (type === "message") on.event(JSON.parse(data));
  };
  async function run() {
    let error = null;
    try {
      const reply = await request(`/events/tail?${params}`, { accept: "text/event-stream", signal: abort.signal });
      on.open();
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
