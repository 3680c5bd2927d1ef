// Health: ledger, breaker, buffer, journal, instances and latencies by route, with small plots.
import { request } from "./api.js";
import { h } from "./dom.js";
import { bytes, count, duration, moment, rate, relative, short } from "./format.js";
import { health, onHealth } from "./health.js";
import { linePlot } from "./plots.js";
import { explain } from "./token.js";

const SCRAPE_MS = 5000;
const WINDOW_MS = 300_000;
const TONES = { healthy: "good", closed: "good", degraded: "warn", "half-open": "warn", critical: "bad", open: "bad" };
const word = (text) => h("b", { class: TONES[text] ?? "" }, text);

/// The histogram of request durations by method and route: `{ count, errors, buckets: [[bound, count]] }`.
function readRoutes(text) {
  const routes = new Map();
  for (const line of text.split("\n")) {
    const found = /^http_request_duration_ms_(bucket|count)\{(.*)\} (\S+)/.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries([...found[2].matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]));
    const key = `${labels.method} ${labels.route}`;
    if (!routes.has(key)) routes.set(key, { count: 0, errors: 0, buckets: new Map() });
    const route = routes.get(key);
    const n = Number(found[3]);
    if (found[1] === "bucket") route.buckets.set(labels.le, (route.buckets.get(labels.le) ?? 0) + n);
    else {
      route.count += n;
      if (labels.status?.startsWith("5")) route.errors += n;
    }
  }
  return routes;
}

/// The upper bound of the bucket that has the quantile, in milliseconds.
function quantile(q, route, base) {
  const total = route.count - (base?.count ?? 0);
  for (const [bound, n] of route.buckets) {
    if (n - (base?.buckets.get(bound) ?? 0) >= q * total) return bound === "+Inf" ? "more" : `≤ ${Number(bound)} ms`;
  }
  return "–";
}

export function statusView(root) {
  const notice = h("div", {});
  const card = (title, ...children) => h("section", { class: "card" }, h("h3", {}, title), ...children);
  const facts = { server: h("dl", {}), ledger: h("table", { class: "ledger" }), database: h("dl", {}), buffer: h("dl", {}), journal: h("dl", {}), writer: h("dl", {}) };
  const meter = h("meter", { min: "0", max: "100", low: "80", high: "95", optimum: "0", value: "0", "aria-label": "Buffer in use, percent" });
  const [incoming, utilization, journal] = [h("div", { class: "chart" }), h("div", { class: "chart" }), h("div", { class: "chart" })];
  for (const [box, label] of [[incoming, "Events that came in per second"], [utilization, "Buffer in use, percent"], [journal, "Bytes of the journal"]]) {
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", label);
  }
  const rows = h("tbody", {});
  const window_ = h("span", { class: "dim" });
  const instances = h("tbody", {});
  const scroll = (label, table) => h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
  const content = h("div", { class: "grid" },
    card("Came in, events/s", incoming), card("Buffer in use, %", utilization), card("Journal, bytes", journal),
    card("Server", facts.server), card("Ledger", facts.ledger), card("PostgreSQL", facts.database),
    card("Buffer", meter, facts.buffer), card("Journal", facts.journal), card("Writer", facts.writer),
    h("section", { class: "card wide" }, h("h3", {}, "Requests by route ", window_), scroll("Requests by route", h("table", {},
      h("thead", {}, h("tr", {}, ["route", "requests", "per second", "median", "99 %", "5xx"].map((text) => h("th", { scope: "col" }, text)))), rows))),
    h("section", { class: "card wide" }, h("h3", {}, "Instances that answered this page"), scroll("Instances", h("table", {},
      h("thead", {}, h("tr", {}, ["started", "version", "phase", "received", "last answer"].map((text) => h("th", { scope: "col" }, text)))), instances)),
    h("p", { class: "dim" }, "Each instance reports itself; behind a load balancer, answers alternate. A tail shows the events of one instance.")));
  root.append(h("h2", { class: "visually-hidden" }, "Health"), notice, content);
  const plots = [
    linePlot(incoming, { color: "#3f7fd9", format: short }),
    linePlot(utilization, { color: "#c9792b", format: (n) => `${n} %`, max: 100 }),
    linePlot(journal, { color: "#1f9d73", format: (n) => bytes(n), least: 1024 }),
  ];
  const scrapes = [];

  const pairs = (list, values) => list.replaceChildren(...values.flatMap(([name, value]) => [h("dt", {}, name), h("dd", { class: "number" }, value)]));

  function render() {
    const report = health.detailed;
    content.hidden = !report;
    if (!report) {
      if (health.error) notice.replaceChildren(explain(health.error));
      return;
    }
    notice.replaceChildren();
    const { ledger, buffer, database, writer } = report;
    pairs(facts.server, [["status", word(report.status)], ["phase", report.phase], ["running for", duration(report.uptime_seconds)], ["version", report.version]]);
    const signs = [["received", ""], ["stored", "= "], ["duplicate", "+ "], ["dead", "+ "], ["lost", "+ "], ["buffered", "+ "]];
    facts.ledger.replaceChildren(h("tbody", {}, signs.filter(([name]) => name !== "lost" || ledger.lost).map(([name, sign]) =>
      h("tr", {}, h("th", { scope: "row" }, sign + name), h("td", { class: "number" }, count(ledger[name]))))));
    const standby = database.standby;
    pairs(facts.database, [
      ["connection", database.connected ? h("b", { class: "good" }, "reachable") : h("b", { class: "bad" }, "not reachable")],
      ...(database.down_since ? [["since", `${moment(database.down_since)} (${relative(new Date(database.down_since))})`]] : []),
      ["breaker", word(database.circuit_breaker)], ["failovers", count(database.failovers)],
      ...(standby ? [["standby", standby.serves_queries ? "serves queries" : standby.connected ? "lags" : "not reachable"]] : []),
    ]);
    meter.value = buffer.utilization_percent;
    pairs(facts.buffer, [["events", `${count(buffer.size)} of ${count(buffer.capacity)}`], ["bytes", `${bytes(buffer.bytes)} of ${bytes(buffer.bytes_capacity)}`],
      ["spilled", `${count(buffer.spilled_events)}, ${bytes(buffer.spilled_bytes)}`], ["refused", `${buffer.drop_rate_percent.toFixed(1)} %`], ["status", word(buffer.status)]]);
    pairs(facts.journal, [["status", report.journal.recovering ? "recovering" : word(report.journal.status)], ["segments", count(report.journal.segments)],
      ["bytes", bytes(report.journal.bytes)], ["free on its disk", bytes(report.journal.disk_free_bytes)]]);
    pairs(facts.writer, [["batches", count(writer.batches)], ["mean batch", `${writer.average_batch_ms.toFixed(1)} ms`], ["retries", count(writer.retries)]]);
    instances.replaceChildren(...health.instances.map((one) => h("tr", {}, [moment(one.started), one.report.version, one.report.phase,
      count(one.report.ledger.received), relative(new Date(one.seen))].map((text) => h("td", { class: "number" }, text)))));
    const times = health.samples.map((sample) => sample.time);
    ["incoming", "utilization", "journal"].forEach((name, nth) => plots[nth].update(times, health.samples.map((sample) => sample[name])));
  }

  async function scrape() {
    if (document.hidden) return;
    const text = await request("/metrics/prometheus", { accept: "text/plain" }).then((reply) => reply.text()).catch(() => null);
    if (text == null || !root.isConnected) return;
    const now = Date.now();
    const routes = readRoutes(text);
    while (scrapes.length > 1 && now - scrapes[0].now > WINDOW_MS) scrapes.shift();
    const base = scrapes[0];
    scrapes.push({ now, routes });
    window_.textContent = base ? `in the last ${duration((now - base.now) / 1000)}` : "since the start of the server";
    const seconds = base ? (now - base.now) / 1000 : health.detailed?.uptime_seconds;
    const lines = [...routes].map(([name, route]) => ({ name, route, old: base?.routes.get(name) }))
      .map((line) => ({ ...line, n: line.route.count - (line.old?.count ?? 0) })).filter((line) => line.n > 0)
      .sort((one, other) => other.n - one.n);
    rows.replaceChildren(...lines.map(({ name, route, old, n }) => h("tr", {}, h("th", { scope: "row" }, name),
      [count(n), seconds ? rate(n / seconds) : "–", quantile(0.5, route, old), quantile(0.99, route, old), count(route.errors - (old?.errors ?? 0))]
        .map((value) => h("td", { class: "number" }, value)))));
  }

  const ignoreHealth = onHealth(render);
  const clock = setInterval(scrape, SCRAPE_MS);
  render();
  scrape();
  return { update: render, restart: scrape, stop() { ignoreHealth(); clearInterval(clock); for (const plot of plots) plot.destroy(); } };
}
