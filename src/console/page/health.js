// Polls the health of the server while the page is visible, and keeps the samples of the last minutes.
import { json, request } from "./api.js";

const INTERVAL_MS = 2000;
const SAMPLES_MAX = 450;
/// A start time that differs by more is of another server, or of one that was restarted.
const START_TOLERANCE_MS = 3000;

/// `detailed`: the last report, null without the scope `metrics`. `error`: why there is none.
export const health = { status: "", detailed: null, error: null, samples: [], instances: [] };
const listeners = new Set();

/// Calls `listener(health)` after each poll; returns a function that ends this.
export function onHealth(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/// Whether the server says that it cannot reach the database.
export const isDatabaseDown = () => health.detailed?.database.connected === false;

function note(report) {
  const now = Date.now();
  const started = now - report.uptime_seconds * 1000;
  let instance = health.instances.find((known) => Math.abs(known.started - started) < START_TOLERANCE_MS);
  if (!instance) health.instances.push(instance = { started, previous: null });
  const { previous } = instance;
  const sample = { now, at: performance.now(), received: report.ledger.received };
  const seconds = previous && (sample.at - previous.at) / 1000;
  const incoming = previous ? Math.max(0, (sample.received - previous.received) / seconds) : null;
  Object.assign(instance, { previous: sample, seen: now, report });
  health.samples.push({
    time: now / 1000, incoming, buffered: report.ledger.buffered, utilization: report.buffer.utilization_percent,
    journal: report.journal.bytes, refused: report.buffer.drop_rate_percent,
  });
  if (health.samples.length > SAMPLES_MAX) health.samples.shift();
}

async function poll() {
  try {
    const report = await json("/health/detailed");
    Object.assign(health, { detailed: report, status: report.status, error: null });
    note(report);
  } catch (error) {
    Object.assign(health, { detailed: null, error, status: "" });
    if (error.isAboutToken) {
      // Everybody may read the status.
      const open = await request("/health").then((reply) => reply.json()).catch(() => ({}));
      health.status = open.status ?? "";
    }
  }
  for (const listener of listeners) listener(health);
}

let timer = null;
async function loop() {
  clearTimeout(timer);
  if (!document.hidden) await poll();
  timer = setTimeout(loop, INTERVAL_MS);
}

export function startHealth() {
  addEventListener("token", loop);
  addEventListener("visibilitychange", () => { if (!document.hidden) loop(); });
  loop();
}
