// Dead letters: what PostgreSQL refused, with the reason and the row; replay and purge.
import { json } from "./api.js";
import { h } from "./dom.js";
import { plural, time } from "./format.js";
import { refreshTimes } from "./list.js";
import { state } from "./state.js";
import { explain } from "./token.js";

const PAGE = 50;

export function dead(root) {
  const [notice, items] = [h("div", {}), h("ol", { class: "cards", "aria-label": "Dead letters, newest first" })];
  const status = h("span", { class: "dim", role: "status", id: "dead-status" });
  const sqlstate = h("input", { id: "sqlstate", size: "7", maxlength: "5", placeholder: "22P02" });
  const more = h("button", { type: "button", hidden: true, onclick: () => load(true) }, "Load more");
  const replayAll = h("button", { type: "button", onclick: () => replay(filters(), replayAll) }, "Replay all");
  const purgeAll = h("button", { type: "button", class: "danger", onclick: () => confirmPurge(filters(), total) }, "Purge all");
  let [cursor, sequence, total] = [null, 0, 0];
  root.append(h("h2", { class: "visually-hidden" }, "Dead letters"),
    h("form", { class: "bar", onsubmit: (event) => { event.preventDefault(); load(false); } },
      h("label", { for: "sqlstate" }, "SQLSTATE"), sqlstate, h("button", {}, "Filter"), replayAll, purgeAll, status),
    notice, items, more);

  function filters() {
    const params = new URLSearchParams();
    if (state.service) params.set("service", state.service);
    if (sqlstate.value.trim()) params.set("sqlstate", sqlstate.value.trim().toUpperCase());
    return params;
  }

  async function replay(params, button) {
    button.disabled = true;
    const sum = { stored: 0, duplicate: 0, refused: 0, unreadable: 0 };
    try {
      let next = null;
      do {
        if (next) params.set("cursor", next);
        const done = await json(`/dead/replay?${params}`, { method: "POST" });
        for (const name of Object.keys(sum)) sum[name] += done[name];
        next = done.next_cursor;
        notice.replaceChildren(h("p", { class: "notice", role: "status", id: "replayed" },
          `Replayed: ${sum.stored} stored, ${sum.duplicate} stored before, ${sum.refused} refused again, ${sum.unreadable} not readable.`));
      } while (next);
      await load(false);
    } catch (error) {
      notice.replaceChildren(explain(error));
    } finally {
      button.disabled = false;
    }
  }

  /// Asks before it deletes: this cannot be undone.
  function confirmPurge(params, n) {
    const dialog = h("dialog", { "aria-labelledby": "purge-title" },
      h("h2", { id: "purge-title" }, `Delete ${plural(n, "dead letter")}?`),
      h("p", {}, "The events are not stored anywhere else. This cannot be undone."),
      h("div", { class: "buttons" },
        h("button", { type: "button", class: "danger", onclick: () => { dialog.close(); purge(params); } }, "Delete"),
        h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }

  async function purge(params) {
    if (!params.size) params.set("all", "true");
    params.set("confirm", "true");
    try {
      const done = await json(`/dead?${params}`, { method: "DELETE" });
      notice.replaceChildren(h("p", { class: "notice", role: "status" }, `${plural(done.purged, "dead letter")} deleted.`));
      await load(false);
    } catch (error) {
      notice.replaceChildren(explain(error));
    }
  }

  function card(letter) {
    const own = () => new URLSearchParams({ event_id: letter.event_id, ...(state.service && { service: state.service }) });
    const again = h("button", { type: "button", onclick: () => replay(own(), again) }, "Replay");
    return h("li", { class: "card", data: { id: letter.event_id } },
      h("div", { class: "bar" }, h("time", { class: "time", datetime: letter.timestamp }, time(letter.timestamp)), h("b", {}, letter.service),
        h("code", {}, letter.sqlstate), again,
        h("button", { type: "button", class: "danger", onclick: () => confirmPurge(own(), 1) }, "Purge")),
      h("p", { class: "reason" }, letter.reason),
      letter.event && h("p", { class: "message" }, letter.event.message),
      h("p", { class: "dim" }, "refused ", h("time", { datetime: letter.died_at }, time(letter.died_at))),
      h("details", {}, h("summary", {}, letter.event ? "The row" : "The row is damaged"),
        h("pre", { tabindex: "0", "aria-label": "The row as JSON" }, JSON.stringify(letter.event ?? letter, null, 2))));
  }

  async function load(older) {
    const mine = (sequence += 1);
    const params = filters();
    params.set("limit", PAGE);
    if (older) params.set("cursor", cursor); else status.textContent = "Loading …";
    try {
      const page = await json(`/dead?${params}`);
      if (mine !== sequence) return;
      if (!older) items.replaceChildren();
      items.append(...page.dead.map(card));
      cursor = page.page.next_cursor;
      total = page.page.total;
      more.hidden = !cursor;
      replayAll.disabled = purgeAll.disabled = total === 0;
      status.textContent = total ? plural(total, "dead letter") : "No dead letters.";
    } catch (error) {
      if (mine !== sequence) return;
      items.replaceChildren();
      status.textContent = "";
      notice.replaceChildren(explain(error));
    }
  }

  const start = () => { notice.replaceChildren(); load(false); };
  start();
  return {
    update(_, previous) { if (state.service !== previous.service) start(); refreshTimes(items); },
    restart: start,
    stop() { sequence += 1; },
  };
}
