// The live page: polls /health/detailed every second and /events every few seconds while the page is visible. Content of
// events is set as text, never as markup.
const POINTS = 300;
const EVENTS_INTERVAL_TICKS = 3;
const PAGE_SIZE = 25;
const byId = (id) => document.getElementById(id);
const setText = (id, text) => { byId(id).textContent = text; };
const number = new Intl.NumberFormat();
const formatCount = (n) => number.format(n);
const TINT = { healthy: "good", ready: "good", closed: "good", degraded: "warn", "half-open": "warn" };

function setStatus(id, text, tint = TINT[text] ?? "bad") {
  setText(id, text);
  byId(id).classList.remove("good", "warn", "bad");
  byId(id).classList.add(tint);
}

function formatBytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) { n /= 1024; unit += 1; }
  return `${n.toFixed(unit && n < 100 ? 1 : 0)} ${units[unit]}`;
}

function formatDuration(seconds) {
  const [d, h, m] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${seconds % 60} s` : `${seconds} s`;
}

async function fetchJson(path) {
  const token = sessionStorage.getItem("token");
  const headers = { Accept: "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  const reply = await fetch(path, { headers, cache: "no-store" });
  const tokenNeeded = reply.status === 401 || reply.status === 403;
  if (tokenNeeded) byId("token-form").hidden = false;
  const body = await reply.json().catch(() => ({}));
  // A critical status is a 503 with a complete body.
  if (!reply.ok && !(reply.status === 503 && body.ledger)) {
    const fields = body.errors?.map((error) => `${error.field} ${error.detail}`).join("; ");
    throw new Error(tokenNeeded ? "a token is needed" : fields ?? body.detail ?? `the server answered ${reply.status}`);
  }
  if (token) byId("token-form").hidden = true;
  return body;
}

let previous = null;
const rates = [];

function render(health) {
  const { buffer, database, journal, writer, ledger } = health;
  setStatus("server-status", health.status);
  setText("about", `${health.phase} for ${formatDuration(health.uptime_seconds)}, version ${health.version}`);
  const now = performance.now();
  // Counts start at zero after a restart of the server.
  if (previous && ledger.received >= previous.ledger.received && ledger.stored >= previous.ledger.stored) {
    const seconds = (now - previous.now) / 1000;
    const rate = (name) => (ledger[name] - previous.ledger[name]) / seconds;
    rates.push({ received: rate("received"), stored: rate("stored") });
    if (rates.length > POINTS) rates.shift();
    setText("received-rate", formatCount(Math.round(rates.at(-1).received)));
    setText("stored-rate", formatCount(Math.round(rates.at(-1).stored)));
  }
  previous = { now, ledger };
  setText("drop-rate", `${buffer.drop_rate_percent.toFixed(1)} %`);
  setText("buffer-size", formatCount(buffer.size));
  setText("buffer-capacity", formatCount(buffer.capacity));
  byId("buffer").value = buffer.utilization_percent;
  byId("buffer").textContent = `${buffer.utilization_percent.toFixed(1)} %`;
  setText("buffer-bytes", `${formatBytes(buffer.bytes)} of ${formatBytes(buffer.bytes_capacity)}, ${buffer.utilization_percent.toFixed(1)} % full`);
  setText("spilled", buffer.spilled_events ? `${formatCount(buffer.spilled_events)} more in the journal only, ${formatBytes(buffer.spilled_bytes)} of ${formatBytes(buffer.spill_capacity_bytes)}` : "");
  setStatus("database", database.connected ? "reachable" : "not reachable", database.connected ? "good" : "bad");
  setStatus("breaker", database.circuit_breaker);
  setText("writer", `${formatCount(writer.batches)} batches of ${writer.average_batch_ms.toFixed(1)} ms on average, ${formatCount(writer.retries)} retries`);
  setStatus("journal", journal.recovering ? "recovering" : journal.status, journal.recovering ? "warn" : undefined);
  setText("journal-size", `${formatBytes(journal.bytes)} in ${formatCount(journal.segments)} segments; ${formatBytes(journal.disk_free_bytes)} free on its disk`);
  for (const name of ["received", "stored", "duplicate", "dead", "lost", "buffered"]) setText(name, formatCount(ledger[name]));
  byId("lost-row").hidden = ledger.lost === 0;
  drawChart();
}

function drawChart() {
  const canvas = byId("chart");
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const top = Math.max(1, ...rates.map((point) => Math.max(point.received, point.stored)));
  setText("scale", `top: ${formatCount(Math.round(top))} events/s, ${POINTS / 60} minutes`);
  const style = getComputedStyle(document.documentElement);
  pen.strokeStyle = style.getPropertyValue("--line");
  for (const part of [0, 0.5, 1]) {
    const y = 4 + part * (height - 8);
    pen.beginPath(); pen.moveTo(0, y); pen.lineTo(width, y); pen.stroke();
  }
  pen.lineWidth = 2;
  for (const name of ["received", "stored"]) {
    pen.strokeStyle = style.getPropertyValue(`--${name}`);
    pen.beginPath();
    rates.forEach((point, nth) => {
      const x = width - (rates.length - 1 - nth) * (width / (POINTS - 1));
      pen.lineTo(x, height - 4 - (point[name] / top) * (height - 8));
    });
    pen.stroke();
  }
}

function buildQuery() {
  const form = new FormData(byId("search"));
  const params = new URLSearchParams({ limit: PAGE_SIZE, count: "none" });
  for (const name of ["service", "q"]) {
    if (form.get(name)) params.set(name, form.get(name));
  }
  const [key, ...value] = form.get("metadata").split("=");
  if (key) params.set(`metadata.${key.trim()}`, value.join("=").trim());
  params.set("from", Date.now() - Number(form.get("hours")) * 3_600_000);
  return params;
}

let query = null;
let cursor = null;
let requestSequence = 0;
let opened = new Set();

function renderEvent(event) {
  const line = document.createElement("tr");
  line.tabIndex = 0;
  const metadata = event.metadata == null ? "" : JSON.stringify(event.metadata);
  const time = new Date(event.timestamp).toLocaleString(undefined, { hour12: false, fractionalSecondDigits: 3,
    year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" });
  for (const text of [time, event.service, event.message, metadata]) {
    line.insertCell().textContent = text;
  }
  line.title = event.event_id;
  const open = (is) => {
    for (const cell of line.cells) cell.classList.toggle("open", is);
    line.cells[3].textContent = is && event.metadata != null ? JSON.stringify(event.metadata, null, 1) : metadata;
    line.cells[0].textContent = is ? `${event.timestamp}\n${event.event_id}` : time;
    if (is) opened.add(event.event_id); else opened.delete(event.event_id);
  };
  if (opened.has(event.event_id)) open(true);
  const toggle = () => open(!opened.has(event.event_id));
  line.addEventListener("click", () => { if (!String(getSelection())) toggle(); });
  line.addEventListener("keydown", (key) => { if (key.key === "Enter") toggle(); });
  return line;
}

async function loadEvents(older) {
  // Further pages use the query of the first page, even if the form has changed.
  if (older) query.set("cursor", cursor); else query = buildQuery();
  const sequence = (requestSequence += 1);
  try {
    const found = await fetchJson(`/events?${query}`);
    // A newer search supersedes this response.
    if (sequence !== requestSequence) return;
    const rows = found.events.map(renderEvent);
    if (older) byId("events").append(...rows); else byId("events").replaceChildren(...rows);
    cursor = found.page.next_cursor;
    byId("older").hidden = !cursor;
    setText("events-status", byId("events").rows.length ? "" : "No events match.");
  } catch (error) {
    if (sequence === requestSequence) setText("events-status", error.message);
  }
}

let ticks = 0;
async function tick() {
  if (!document.hidden) {
    try {
      render(await fetchJson("/health/detailed"));
    } catch (error) {
      setStatus("server-status", error instanceof TypeError ? "the server does not respond" : error.message, "bad");
      previous = null;
    }
    if (byId("follow").checked && ticks % EVENTS_INTERVAL_TICKS === 0) await loadEvents(false);
    ticks += 1;
  }
  setTimeout(tick, 1000);
}

byId("search").addEventListener("submit", (event) => { event.preventDefault(); opened = new Set(); loadEvents(false); });
byId("older").addEventListener("click", () => { byId("follow").checked = false; loadEvents(true); });
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  byId("token").value = "";
  ticks = 0;
});
addEventListener("resize", drawChart);
tick();
