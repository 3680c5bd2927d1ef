// What the browser tests share: a browser, events, conditions that are awaited, and requests to the test that started this.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const require = createRequire(process.env.BROWSER_MODULES);
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/// The arguments: URLs of the servers, tokens, and the directory of the screenshots.
export const given = JSON.parse(process.argv[2]);

const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/// Has the test do something that a browser cannot: answers when it is done.
export async function ask(what) {
  console.log(what);
  const { value } = await answers.next();
  assert.equal(value, `done ${what}`);
}

/// Posts events; returns their ids.
export async function post(events, url = given.open, token = "") {
  const reply = await fetch(`${url}/events`, { method: "POST", body: JSON.stringify(events),
    headers: { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) } });
  assert.equal(reply.status, 202, await reply.clone().text());
  return (await reply.json()).event_ids;
}

export const event = (service, message, metadata = undefined, ago = 0) =>
  ({ timestamp: Date.now() - ago, service, message, metadata });

/// Waits until as many events of a service are stored.
export async function stored(service, count, url = given.open) {
  await until(`${count} events of ${service} are stored`, async () => {
    const page = await fetch(`${url}/events?${new URLSearchParams({ service, limit: 1, from: 0 })}`);
    return page.ok && (await page.json()).page.total >= count;
  });
}

export async function until(what, condition, timeout = 20_000) {
  const end = performance.now() + timeout;
  while (!await condition()) {
    if (performance.now() > end) throw new Error(`timeout waiting until ${what}`);
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
}

const profile = mkdtempSync(join(tmpdir(), "aurore-browser-"));
let context = null;
const complaints = [];

/// A page of a new window; errors on its console are noted, but those of requests that the test wants to fail.
export async function open(url, size = { width: 1280, height: 800 }) {
  context ??= await chromium.launchPersistentContext(profile, { executablePath: given.chromium, headless: true, args: FLAGS, acceptDownloads: true });
  const page = await context.newPage();
  await page.setViewportSize(size);
  page.setDefaultTimeout(15_000);
  page.on("console", (message) => {
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  if (process.env.BROWSER_ROUTES) await (await import(process.env.BROWSER_ROUTES)).route(page);
  await page.goto(url);
  return page;
}

export async function finish() {
  await context?.close();
  rmSync(profile, { recursive: true, force: true });
  // The test keeps the other end open until this process ends.
  process.stdin.destroy();
  assert.deepEqual(complaints, [], "the console has no errors");
}

/// Runs axe-core; the page's policy forbids a script of its own, so that it runs by the debugger.
export async function accessible(page, what) {
  await page.evaluate(`if (!window.axe) { ${AXE} }`);
  const { violations } = await page.evaluate(() => window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] }));
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => `${node.target} ${node.failureSummary}`).join(" | ")}`);
  assert.deepEqual(found, [], `axe-core on ${what}`);
}

export async function shot(page, name) {
  await page.screenshot({ path: join(given.screenshots, `${name}.png`) });
}
