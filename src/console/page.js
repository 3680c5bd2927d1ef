// The live page: asks /health/detailed every second and /events every few, as long as somebody looks. What comes from
// events is only ever set as text, never as markup.
const POINTS = 300;
const EVENTS_EVERY = 3;
const PAGE = 25;
const at = (id) => document.getElementById(id);
const say = (id, text) => { at(id).textContent = text; };
const number = new Intl.NumberFormat();
const count = (n) => number.format(n);
const TINT = { healthy: "good", ready: "good", closed: "good", degraded: "warn", "half-open": "warn" };

function word(id, text, tint = TINT[text] ?? "bad") {
  say(id, text);
  at(id).classList.remove("good", "warn", "bad");
  at(id).classList.add(tint);
}

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) { n /= 1024; unit += 1; }
  return `${n.toFixed(unit && n < 100 ? 1 : 0)} ${units[unit]}`;
}

function lasting(seconds) {
  const [d, h, m] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${seconds % 60} s` : `${seconds} s`;
}

async function ask(path) {
  const token = sessionStorage.getItem("token");
  const headers = { Accept: "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  const reply = await fetch(path, { headers, cache: "no-store" });
  const wanted = reply.status === 401 || reply.status === 403;
  if (wanted) at("token-form").hidden = false;
  const body = await reply.json().catch(() => ({}));
  // A critical condition is a 503 that says all there is to say.
  if (!reply.ok && !(reply.status === 503 && body.ledger)) {
    const fields = body.errors?.map((error) => `${error.field} ${error.detail}`).join("; ");
    throw new Error(wanted ? "a token is needed" : fields ?? body.detail ?? `the server answered ${reply.status}`);
  }
  if (token) at("token-form").hidden = true;
  return body;
}

let before = null;
const rates = [];

function show(health) {
  const { buffer, database, journal, writer, ledger } = health;
  word("state", health.status);
  say("about", `${health.phase} for ${lasting(health.uptime_seconds)}, version ${health.version}`);
  const now = performance.now();
  // A server that was restarted counts from zero again.
  if (before && ledger.received >= before.ledger.received && ledger.stored >= before.ledger.stored) {
    const seconds = (now - before.now) / 1000;
    const rate = (name) => (ledger[name] - before.ledger[name]) / seconds;
    rates.push({ received: rate("received"), stored: rate("stored") });
    if (rates.length > POINTS) rates.shift();
    say("received-rate", count(Math.round(rates.at(-1).received)));
    say("stored-rate", count(Math.round(rates.at(-1).stored)));
  }
  before = { now, ledger };
  say("drop-rate", `${buffer.drop_rate_percent.toFixed(1)} %`);
  say("buffer-size", count(buffer.size));
  say("buffer-capacity", count(buffer.capacity));
  at("buffer").value = buffer.utilization_percent;
  at("buffer").textContent = `${buffer.utilization_percent.toFixed(1)} %`;
  say("buffer-bytes", `${bytes(buffer.bytes)} of ${bytes(buffer.bytes_capacity)}, ${buffer.utilization_percent.toFixed(1)} % full`);
  word("database", database.connected ? "reachable" : "not reachable", database.connected ? "good" : "bad");
  word("breaker", database.circuit_breaker);
  say("writer", `${count(writer.batches)} batches of ${writer.average_batch_ms.toFixed(1)} ms on average, ${count(writer.retries)} retries`);
  word("journal", journal.recovering ? "recovering" : journal.status, journal.recovering ? "warn" : undefined);
  say("journal-size", `${bytes(journal.bytes)} in ${count(journal.segments)} segments; ${bytes(journal.disk_free_bytes)} free on its disk`);
  for (const name of ["received", "stored", "duplicate", "dead", "buffered"]) say(name, count(ledger[name]));
  draw();
}

function draw() {
  const canvas = at("chart");
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const top = Math.max(1, ...rates.map((point) => Math.max(point.received, point.stored)));
  say("scale", `top: ${count(Math.round(top))} events/s, ${POINTS / 60} minutes`);
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

function filter() {
  const form = new FormData(at("search"));
  const wanted = new URLSearchParams({ limit: PAGE, count: "none" });
  for (const name of ["service", "q"]) {
    if (form.get(name)) wanted.set(name, form.get(name));
  }
  const [key, ...value] = form.get("metadata").split("=");
  if (key) wanted.set(`metadata.${key.trim()}`, value.join("=").trim());
  wanted.set("from", Date.now() - Number(form.get("hours")) * 3_600_000);
  return wanted;
}

let query = null;
let cursor = null;
let asked = 0;
let opened = new Set();

function row(event) {
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

async function events(older) {
  // Further pages are of the same question, whatever the form says by now.
  if (older) query.set("cursor", cursor); else query = filter();
  const ours = (asked += 1);
  try {
    const found = await ask(`/events?${query}`);
    // Somebody has searched for something else meanwhile.
    if (ours !== asked) return;
    const rows = found.events.map(row);
    if (older) at("events").append(...rows); else at("events").replaceChildren(...rows);
    cursor = found.page.next_cursor;
    at("older").hidden = !cursor;
    say("events-said", at("events").rows.length ? "" : "No event of the time chosen fits.");
  } catch (error) {
    if (ours === asked) say("events-said", error.message);
  }
}

let turn = 0;
async function tick() {
  if (!document.hidden) {
    try {
      show(await ask("/health/detailed"));
    } catch (error) {
      word("state", error instanceof TypeError ? "the server does not answer" : error.message, "bad");
      before = null;
    }
    if (at("follow").checked && turn % EVENTS_EVERY === 0) await events(false);
    turn += 1;
  }
  setTimeout(tick, 1000);
}

at("search").addEventListener("submit", (event) => { event.preventDefault(); opened = new Set(); events(false); });
at("older").addEventListener("click", () => { at("follow").checked = false; events(true); });
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value.trim());
  at("token").value = "";
  turn = 0;
});
addEventListener("resize", draw);
tick();
