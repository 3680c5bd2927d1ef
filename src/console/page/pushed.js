// Pushed metrics: the groups as Pushgateway's own page shows them, with times, TTL and delete.
import { json, request } from "./api.js";
import { h } from "./dom.js";
import { plural, relative, moment } from "./format.js";
import { explain } from "./token.js";

const TIMES = ["push_time_seconds", "push_failure_time_seconds"];
const REFRESH_MS = 10_000;

/// The path of a group: values are written in base64, which any text can be.
function pathOf({ job, ...labels }) {
  const base64 = (text) => btoa(String.fromCodePoint(...new TextEncoder().encode(text))).replaceAll("+", "-").replaceAll("/", "_") || "=";
  return `/metrics/${[["job", job], ...Object.entries(labels)].map(([name, value]) => `${name}@base64/${base64(value)}`).join("/")}`;
}

const labelsText = (labels) => Object.entries(labels).map(([name, value]) => `${name}="${value}"`).join(", ");

function valueText(metric) {
  if (metric.value != null) return metric.value;
  const parts = metric.quantiles ?? metric.buckets ?? {};
  return `count ${metric.count}, sum ${metric.sum}; ${Object.entries(parts).map(([bound, n]) => `${bound}: ${n}`).join(", ")}`;
}

/// The time to live of groups, by the settings of the server.
function ttlText(flags) {
  const value = flags?.PUSHED_GROUP_TTL;
  if (value == null) return "";
  return Number(value) === 0 ? "never expires" : `expires ${/[a-z]$/.test(value) ? value : `${value} ms`} after the last push`;
}

export function pushed(root) {
  const [notice, groups] = [h("div", {}), h("ol", { class: "cards", "aria-label": "Groups" })];
  const status = h("span", { class: "dim", role: "status", id: "pushed-status" });
  let sequence = 0;
  let ttl = null;
  root.append(h("h2", { class: "visually-hidden" }, "Pushed metrics"),
    h("div", { class: "bar" }, status, h("button", { type: "button", onclick: () => load() }, "Refresh")), notice, groups);

  function confirmDelete(labels) {
    const dialog = h("dialog", { "aria-labelledby": "delete-title" },
      h("h2", { id: "delete-title" }, "Delete this group?"), h("p", {}, h("code", {}, labelsText(labels))),
      h("div", { class: "buttons" },
        h("button", { type: "button", class: "danger", onclick: () => { dialog.close(); remove(labels); } }, "Delete"),
        h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")));
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }

  async function remove(labels) {
    try {
      await request(pathOf(labels), { method: "DELETE" });
      await load();
    } catch (error) {
      notice.replaceChildren(explain(error));
    }
  }

  function pushTime(text, family) {
    const seconds = Number(family?.metrics[0]?.value ?? 0);
    return seconds > 0 ? h("span", { title: moment(seconds * 1000) }, `${text} ${relative(new Date(seconds * 1000))}`) : h("span", {}, `${text} never`);
  }

  function groupCard(group) {
    const { labels, last_push_successful: ok, ...families } = group;
    const metrics = Object.entries(families).filter(([name]) => !TIMES.includes(name) && families[name]?.metrics);
    return h("li", { class: "card", data: { job: labels.job } },
      h("div", { class: "bar" }, h("b", {}, labels.job),
        Object.entries(labels).filter(([name]) => name !== "job").map(([name, value]) => h("code", {}, `${name}="${value}"`)),
        h("span", { class: ok ? "good" : "bad" }, ok ? "last push succeeded" : "last push failed"),
        pushTime("pushed", families[TIMES[0]]), pushTime("failed", families[TIMES[1]]),
        ttl && h("span", {}, ttl),
        h("button", { type: "button", class: "danger", "aria-label": `Delete the group ${labelsText(labels)}`, onclick: () => confirmDelete(labels) }, "Delete")),
      metrics.map(([name, family]) => h("details", {},
        h("summary", {}, h("code", {}, name), ` ${family.type.toLowerCase()}, ${plural(family.metrics.length, "series", "series")} `, h("span", { class: "dim" }, family.help ?? "")),
        h("table", {}, h("tbody", {}, family.metrics.map((metric) => h("tr", {},
          h("td", {}, labelsText(Object.fromEntries(Object.entries(metric.labels ?? {}).filter(([label]) => !(label in labels)))) || "–"),
          h("td", { class: "number" }, valueText(metric)))))))));
  }

  async function load() {
    const mine = (sequence += 1);
    try {
      const [{ data }, server] = await Promise.all([json("/api/v1/metrics"), json("/api/v1/status")]);
      ttl = ttlText(server.data.flags);
      if (mine !== sequence) return;
      notice.replaceChildren();
      const open = new Set([...groups.querySelectorAll("details[open] summary code")].map((code) => code.textContent));
      groups.replaceChildren(...data.map(groupCard));
      for (const details of groups.querySelectorAll("details")) details.open = open.has(details.querySelector("code").textContent);
      status.textContent = data.length ? plural(data.length, "group") : "No group has pushed metrics.";
    } catch (error) {
      if (mine !== sequence) return;
      status.textContent = "";
      notice.replaceChildren(explain(error));
    }
  }

  const clock = setInterval(() => { if (!document.hidden && !groups.contains(document.activeElement)) load(); }, REFRESH_MS);
  load();
  return { update() {}, restart: load, stop() { sequence += 1; clearInterval(clock); } };
}
