// The page: tabs, the line of the server's status, notices, and the view that the state names.
import { setText, byId, h } from "./dom.js";
import { dead } from "./dead.js";
import { startDrawer, update as updateDrawer } from "./drawer.js";
import { clock, duration, plural, relative } from "./format.js";
import { health, isDatabaseDown, onHealth, startHealth } from "./health.js";
import { live } from "./live.js";
import { pushed } from "./pushed.js";
import { search } from "./search.js";
import { onChange, set, state } from "./state.js";
import { statusView } from "./status.js";
import { openTokenDialog, showTokenState } from "./token.js";

const TABS = { live: ["Live", live], search: ["Search", search], dead: ["Dead letters", dead], pushed: ["Pushed", pushed], health: ["Health", statusView] };
let view = null;

function showTab() {
  view?.stop();
  const root = h("div", { class: `view ${state.tab}` });
  byId("view").replaceChildren(root);
  view = TABS[state.tab][1](root);
  document.title = `${TABS[state.tab][0]} · aurore-events`;
  for (const link of byId("tabs").children) {
    if (link.dataset.tab === state.tab) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
}

function buildTabs() {
  byId("tabs").append(...Object.entries(TABS).map(([tab, [text]]) => h("a", {
    href: `/?tab=${tab}`, data: { tab },
    onclick: (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      set({ tab, event: "" });
    },
  }, text)));
}

function showServer() {
  const { detailed, status, error } = health;
  const element = byId("server-status");
  element.className = { healthy: "good", degraded: "warn", critical: "bad" }[status] ?? (error ? "bad" : "");
  setText(element, detailed ? status : status || (error?.kind === "network" ? "not responding" : error ? "token needed" : "…"));
  element.title = detailed ? `${detailed.phase} for ${duration(detailed.uptime_seconds)}, version ${detailed.version}` : "";
  if (!isDatabaseDown()) { byId("notices").replaceChildren(); return; }
  const since = detailed.database.down_since;
  const text = `PostgreSQL is not reachable${since ? ` since ${clock(since)} (${relative(new Date(since))})` : ""}. `
    + `Events are still accepted: ${plural(detailed.ledger.buffered, "event")} wait in the buffer and the journal. Live goes on; Search comes back by itself.`;
  if (!byId("outage")) byId("notices").replaceChildren(h("p", { class: "notice warn", id: "outage" }));
  setText(byId("outage"), text);
}

function choose(id, name) {
  const element = byId(id);
  element.value = state[name];
  element.addEventListener("change", () => set({ [name]: element.value }));
  onChange(() => { element.value = state[name]; });
}

buildTabs();
choose("tz", "tz");
choose("times", "times");
byId("token-button").addEventListener("click", openTokenDialog);
addEventListener("token", () => { showTokenState(); view.restart(); });
onChange((_, previous) => {
  if (state.tab !== previous.tab) showTab(); else view.update(state, previous);
  if (state.event !== previous.event) updateDrawer();
});
onHealth(showServer);
showTokenState();
startDrawer();
showTab();
updateDrawer();
startHealth();
