// Drives the page in Chromium against a real server. Started by tests/it/browser.rs.
import assert from "node:assert/strict";
import { accessible, ask, event, finish, given, open, post, shot, stored, until } from "./steps.mjs";

const VIEWS = { live: "Live", search: "Search", dead: "Dead letters", pushed: "Pushed", health: "Health" };
const started = performance.now();

async function step(what, run) {
  const begin = performance.now();
  try {
    await run();
  } catch (error) {
    error.message = `${what}: ${error.message}`;
    throw error;
  }
  console.error(`${what}: ${Math.round(performance.now() - begin)} ms`);
}

const rows = (page) => page.locator(".events .row");
const url = (tab, more = {}) => `${given.open}/?${new URLSearchParams({ tab, ...more })}`;
const param = (page, name) => new URL(page.url()).searchParams.get(name);

let page = null;
let ids = [];

await step("events are posted", async () => {
  const many = Array.from({ length: 240 }, (_, nth) => event(["checkout", "search", "mail"][nth % 3],
    nth % 12 === 0 ? `payment ${nth} refused` : `order ${nth} handled`, { region: nth % 2 ? "eu" : "us", nth }, nth * 10_000));
  ids = await post(many);
  for (const service of ["checkout", "search", "mail"]) await stored(service, 80);
});

await step("live shows an event within a second of its post", async () => {
  page = await open(given.open);
  await page.getByText(/Connected to .+:\d+/).waitFor();
  await rows(page).nth(10).waitFor();
  // The text is found in the page by its own clock, which is that of this machine.
  await page.evaluate(() => {
    window.seen = new Promise((resolve) => {
      new MutationObserver(() => {
        if (document.querySelector(".events")?.textContent.includes("seen at once")) resolve(Date.now());
      }).observe(document.body, { subtree: true, childList: true });
    });
  });
  const posted = Date.now();
  await post([event("checkout", "seen at once", { region: "eu" })]);
  const delay = await page.evaluate(() => window.seen) - posted;
  assert.ok(delay < 1000, `${delay} ms`);
});

await step("live pauses, filters and resumes", async () => {
  await page.getByRole("button", { name: "Pause" }).click();
  await post([event("mail", "sent while paused")]);
  await page.getByText(/Paused, 1 new event$/).waitFor();
  assert.equal(await page.getByText("sent while paused").count(), 0);
  await page.getByRole("button", { name: "Resume" }).click();
  await page.getByText("sent while paused").waitFor();
  await page.getByRole("searchbox").fill("metadata.region=eu seen");
  await page.keyboard.press("Enter");
  await until("the filter applies", async () => await rows(page).count() === 1);
  assert.equal(param(page, "q"), "metadata.region=eu seen");
});

await step("live shows the events that arrived while it was disconnected", async () => {
  await page.goto(url("live", { q: "missed" }));
  await page.getByText(/Connected to .+:\d+/).waitFor();
  const [first] = await post([event("mail", "missed none")]);
  await page.getByText("missed none").waitFor();
  // Until this route ends, the page cannot open its tail again.
  await page.route("**/events/tail*", (route) => route.abort());
  await ask("restart server");
  await post([event("mail", "missed one")]);
  await stored("mail", 83);
  await page.unroute("**/events/tail*");
  await page.getByText("missed one").waitFor();
  await page.getByText(/Connected to .+:\d+/).waitFor();
  assert.equal(await page.locator(`.events .row[data-id="${first}"]`).count(), 1, "it is repeated");
});

await step("search finds events and names mistakes", async () => {
  await page.goto(url("search", { range: "6h" }));
  await rows(page).first().waitFor();
  await page.locator(".u-over").waitFor();
  const box = page.getByRole("searchbox");
  for (const [text, mistake] of [["metadata.region", "has no value"], ["metadata.=eu", "has no key"], ["\"open", "is not closed"], ["metadata.region=", "has no value"]]) {
    await box.fill(text);
    await box.press("Enter");
    assert.match(await page.locator("#box-error").innerText(), new RegExp(mistake), text);
    assert.equal(await box.getAttribute("aria-invalid"), "true");
  }
  await box.fill("refused metadata.region=us service=checkout");
  await box.press("Enter");
  await page.getByText(/^20 events shown, all that match$/).waitFor();
  await box.fill(`"${"x".repeat(300)}"`);
  await box.press("Enter");
  await page.getByText(/q must be 1 to 256 bytes/).waitFor();
});

await step("the state is in the URL, and the back button works", async () => {
  await page.goBack();
  await page.getByText(/^20 events shown/).waitFor();
  assert.equal(await page.getByRole("searchbox").inputValue(), "refused metadata.region=us service=checkout");
  const shared = await open(page.url());
  await shared.getByText(/^20 events shown/).waitFor();
  await shared.close();
});

await step("a drag over the histogram zooms, and zooming out widens", async () => {
  await page.goto(url("search"));
  await rows(page).nth(20).waitFor();
  const plot = page.locator(".u-over");
  const area = await plot.boundingBox();
  await page.mouse.move(area.x + area.width * 0.5, area.y + 40);
  await page.locator(".tip").waitFor({ state: "attached" });
  await page.mouse.down();
  await page.mouse.move(area.x + area.width * 0.8, area.y + 40, { steps: 4 });
  await page.mouse.up();
  await until("the range is in the URL", () => param(page, "from"));
  const [from, to] = ["from", "to"].map((name) => Date.parse(param(page, name)));
  assert.ok(Math.abs((to - from) / 3_600_000 - 0.3) < 0.02, `${to - from} ms`);
  await page.getByRole("button", { name: "Zoom out" }).click();
  await until("the range is wider", () => Date.parse(param(page, "from")) < from);
});

await step("services have counts and filter", async () => {
  await page.goto(url("search", { range: "6h" }));
  const button = page.locator(".services button", { hasText: "search" });
  assert.match(await button.innerText(), /80/);
  await button.click();
  await page.getByText(/^80 events shown/).waitFor();
  assert.equal(param(page, "service"), "search");
});

await step("the end of the list loads the next page", async () => {
  await page.goto(url("search", { range: "6h" }));
  await page.getByText(/^100 events shown, more below$/).waitFor();
  await until("all are loaded", async () => {
    await page.mouse.wheel(0, 20_000);
    return await page.getByText(/^244 events shown, all that match$/).count() === 1;
  });
  const shown = await rows(page).evaluateAll((found) => found.map((row) => row.dataset.id));
  assert.equal(new Set(shown).size, 244);
});

await step("the drawer has the event, its receipt and filters, and the keyboard reaches it", async () => {
  await page.goto(url("search", { range: "6h", q: "\"order 1 handled\"" }));
  await rows(page).first().waitFor();
  await rows(page).first().focus();
  await page.keyboard.press("Enter");
  const drawer = page.getByRole("dialog", { name: "Event" });
  await drawer.locator('[data-status="stored"]').waitFor();
  assert.match(await drawer.locator("pre").innerText(), /"message": "order 1 handled"/);
  assert.equal(param(page, "event"), ids[1]);
  await drawer.getByRole("button", { name: "Before and after" }).click();
  await until("neighbours are shown", async () => await drawer.locator(".around li").count() >= 3);
  await accessible(page, "the drawer");
  await shot(page, "drawer-light-desktop");
  await page.keyboard.press("Escape");
  await drawer.waitFor({ state: "hidden" });
  assert.equal(await page.evaluate(() => document.activeElement.className), "row");
  await rows(page).first().click();
  await drawer.getByRole("button", { name: "filter by this: region eu" }).click();
  await until("the filter is added", () => param(page, "q")?.includes("metadata.region=eu"));
});

await step("an id opens the event; an unknown one is not found", async () => {
  const box = page.getByRole("searchbox");
  await box.fill(ids[5]);
  await box.press("Enter");
  await page.locator('#drawer [data-status="stored"]').waitFor();
  await page.keyboard.press("Escape");
  await box.fill("018c0000-0000-7000-8000-000000000000");
  await box.press("Enter");
  await page.locator('#drawer [data-status="missing"]').waitFor();
});

await step("the current filter is exported", async () => {
  await page.goto(url("search", { range: "6h", service: "search" }));
  for (const [kind, lines] of [["CSV", 81], ["NDJSON", 80]]) {
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: `Export ${kind}` }).click()]);
    const text = (await (await download.createReadStream()).toArray()).join("");
    assert.equal(text.trim().split("\n").length, lines, kind);
  }
});

await step("dead letters are shown, replayed and purged", async () => {
  await ask("refuse poison");
  await post([event("mail", "poison 1"), event("mail", "poison 2")]);
  await ask("await dead letters");
  await page.goto(url("dead"));
  await page.getByText("2 dead letters").waitFor();
  assert.match(await page.locator(".card .reason").first().innerText(), /no_poison/);
  await accessible(page, "dead letters");
  await ask("allow poison");
  await page.locator(".card", { hasText: "poison 1" }).getByRole("button", { name: "Replay" }).click();
  await page.getByText(/Replayed: 1 stored/).waitFor();
  await page.locator(".card", { hasText: "poison 2" }).getByRole("button", { name: "Purge" }).click();
  await page.getByRole("button", { name: "Delete" }).click();
  await page.getByText("No dead letters.").waitFor();
});

await step("pushed groups are shown and deleted", async () => {
  for (const job of ["backup", "nightly report"]) {
    const pushed = await fetch(`${given.open}/metrics/job/${encodeURIComponent(job)}/instance/a`, { method: "PUT", body: "# TYPE rows gauge\nrows{table=\"t\"} 17\n" });
    assert.equal(pushed.status, 200);
  }
  await page.goto(url("pushed"));
  await page.getByText("2 groups").waitFor();
  const card = page.locator('[data-job="nightly report"]');
  await card.locator("summary", { hasText: "rows" }).click();
  await card.getByText("17").waitFor();
  await accessible(page, "pushed groups");
  await card.getByRole("button", { name: /^Delete the group/ }).click();
  await page.locator("dialog").getByRole("button", { name: "Delete" }).click();
  await page.getByText("1 group").waitFor();
});

await step("every view looks well and has no violations in light and dark, on desktop and phone", async () => {
  await ask("refuse poison");
  await post([event("checkout", "poison 3, which PostgreSQL refuses", { region: "eu" })]);
  await ask("await dead letters");
  for (const [size, width] of [["desktop", 1280], ["phone", 390]]) {
    await page.setViewportSize({ width, height: 844 });
    for (const scheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
      for (const [tab, title] of Object.entries(VIEWS)) {
        await page.goto(url(tab));
        await page.locator(`#tabs [aria-current="page"]`, { hasText: title }).waitFor();
        await page.locator({ live: ".row", search: ".u-over", dead: ".card", pushed: ".card", health: ".ledger td" }[tab]).first().waitFor();
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(overflow <= 0, `${tab} at ${width} px is ${overflow} px too wide`);
        await accessible(page, `${tab}, ${scheme}, ${size}`);
        await shot(page, `${tab}-${scheme}-${size}`);
      }
    }
  }
  const row = await page.goto(url("live")).then(() => rows(page).first()).then(async (first) => { await first.waitFor(); return first; });
  const [message, metadata] = [await row.locator(".message").boundingBox(), await row.locator(".metadata").boundingBox()];
  assert.ok(message.width > 250 && metadata.width > 250, "a card has the whole width for message and metadata");
  await page.setViewportSize({ width: 1280, height: 800 });
  await page.emulateMedia({ colorScheme: "light" });
  await ask("allow poison");
});

await step("a database that goes away is told, and search comes back by itself", async () => {
  await page.goto(url("search", { range: "6h" }));
  await rows(page).first().waitFor();
  await ask("stop database");
  await page.locator("#outage", { hasText: /not reachable since \d\d:\d\d:\d\d/ }).waitFor();
  await page.getByRole("button", { name: "Refresh" }).click();
  await page.locator("#away").waitFor();
  await shot(page, "outage-light-desktop");
  const other = await open(url("live"));
  await other.getByText(/Connected to .+:\d+/).waitFor();
  const [id] = await post([event("checkout", "posted in the outage"), event("mail", "and another")]);
  await other.getByText("posted in the outage").click();
  await other.locator('#drawer [data-status="buffered"], #drawer [data-status="admitted"]').first().waitFor();
  assert.equal(param(other, "event"), id);
  await other.close();
  await ask("start database");
  await page.getByText("posted in the outage").waitFor({ timeout: 30_000 });
  await page.locator("#outage").waitFor({ state: "detached" });
});

await step("tokens: none, wrong scope, one that must name a service, and the right one", async () => {
  await page.goto(`${given.guarded}/?tab=search`);
  await page.locator('[data-kind="no-token"]').waitFor();
  const use = async (token) => {
    await page.locator("#token-button").click();
    await page.locator("#token").fill(token);
    await page.getByRole("button", { name: "Use token" }).click();
  };
  await use("wrong");
  await page.locator('[data-kind="bad-token"]').waitFor();
  await use(given.tokens.metrics);
  await page.getByText("Wrong scope: this needs a token with the scope query.").waitFor();
  await use(given.tokens.restricted);
  await page.getByText("This token must name a service.").waitFor();
  await accessible(page, "a token notice");
  await shot(page, "token-light-desktop");
  await page.locator('[data-kind="service"]').getByRole("button", { name: "checkout" }).click();
  await rows(page).first().waitFor();
  assert.ok((await page.locator(".row .service").allTextContents()).every((service) => service === "checkout"));
  await use(given.tokens.admin);
  await page.goto(`${given.guarded}/?tab=dead`);
  await page.getByText("dead letter").first().waitFor();
  assert.deepEqual(await page.evaluate(() => [localStorage.length, document.cookie, location.href.includes("aev_")]), [0, "", false]);
  const fresh = await open(`${given.guarded}/?tab=search`);
  await fresh.locator('[data-kind="no-token"]').waitFor();
  await fresh.close();
});

await finish();
console.error(`all: ${Math.round(performance.now() - started)} ms`);
