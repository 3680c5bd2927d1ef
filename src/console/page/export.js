// Saves all events of the current filter as CSV or NDJSON, with progress and a way to stop.
import { request } from "./api.js";
import { copy, h } from "./dom.js";
import { bytes } from "./format.js";
import { explain } from "./token.js";

const KINDS = { CSV: ["text/csv", "csv"], NDJSON: ["application/x-ndjson", "ndjson"] };

async function save(kind, params, status) {
  const [accept, ending] = KINDS[kind];
  const abort = new AbortController();
  const text = h("span", {}, "Exporting …");
  status.replaceChildren(text, " ", h("button", { type: "button", onclick: () => abort.abort() }, "Stop"));
  try {
    const reply = await request(`/events?${params}`, { accept, signal: abort.signal });
    const [pieces, reader] = [[], reply.body.getReader()];
    let size = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      pieces.push(value);
      size += value.length;
      text.textContent = `Exporting, ${bytes(size)} …`;
    }
    const url = URL.createObjectURL(new Blob(pieces, { type: accept }));
    h("a", { href: url, download: `events.${ending}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    status.replaceChildren(`Exported ${bytes(size)}.`);
  } catch (error) {
    if (error.name === "AbortError") status.replaceChildren("The export was stopped.");
    else status.replaceChildren(error.kind ? explain(error) : `The export broke off: ${error.message}`);
  }
}

/// The buttons. `params()` gives the current filter.
export function exportButtons(params) {
  const status = h("span", { role: "status" });
  const curl = h("button", { type: "button", onclick: () => {
    const url = `${location.origin}/events?${params()}`;
    copy(`curl -sSN -H 'Accept: application/x-ndjson' -H "Authorization: Bearer $TOKEN" '${url}'`, curl);
  } }, "Copy as curl");
  const buttons = Object.keys(KINDS).map((kind) =>
    h("button", { type: "button", onclick: () => save(kind, params(), status) }, `Export ${kind}`));
  return h("div", { class: "buttons exports" }, ...buttons, curl, status);
}
