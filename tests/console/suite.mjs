// The console in a real browser, beside a whole site that talks. Nothing here sleeps: it waits for what the page says.
import assert from "node:assert/strict";
import { request } from "node:http";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import test from "node:test";
import { parseArgs } from "node:util";
import { tooFaint } from "./contrast.mjs";
import { inPalette } from "./palette.mjs";
import { Site } from "./site.mjs";

const { values: given } = parseArgs({
  options: {
    modules: { type: "string" },
    chromium: { type: "string" },
    site: { type: "string" },
    pictures: { type: "string" },
    images: { type: "boolean", default: false },
    // With pictures of a gateway that has just started, and not of one that has run for as long as they show.
    young: { type: "boolean", default: false },
  },
});
const load = createRequire(path.join(path.resolve(given.modules), "suite.cjs"));
const { chromium } = load("playwright-core");
const { HtmlValidate } = load("html-validate");

// A link that has just been healed is tried again within half a minute.
const PATIENCE_MS = 90_000;
const PICTURE_MAX = 150 * 1024;
const LAMPS = ["ingest", "keys", "relay", "disk"];

const site = await Site.start(given.site);
const address = site.facts.console;
// As root, which a builder often is, there is no sandbox to be had.
const sandbox = process.getuid() === 0 ? ["--no-sandbox"] : [];
const browser = await chromium.launch({ executablePath: given.chromium, args: [...sandbox, "--disable-gpu"] });
mkdirSync(given.pictures, { recursive: true });

// Everything that a browser could complain of, and everything that it asked for.
function watched(page) {
  const heard = { complaints: [], requests: [], navigations: 0 };
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) heard.complaints.push(message.text());
  });
  page.on("pageerror", (error) => heard.complaints.push(String(error)));
  page.on("request", (asked) => heard.requests.push(asked.url()));
  page.on("framenavigated", () => (heard.navigations += 1));
  return heard;
}

function isQuiet(heard) {
  assert.deepEqual(heard.complaints, []);
  const elsewhere = heard.requests.filter((url) => !url.startsWith(address));
  assert.deepEqual(elsewhere, [], "nothing is asked for elsewhere");
}

async function open(options = {}, where = "") {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => console.error("policy:", event.violatedDirective));
  });
  const heard = watched(page);
  await page.goto(address + where);
  return { page, heard, close: () => context.close() };
}

const levels = (page) =>
  page.$$eval("[data-lamp]", (all) => Object.fromEntries(all.map((lamp) => [lamp.dataset.lamp, lamp.dataset.level])));
const until = (page, condition, argument) => page.waitForFunction(condition, argument, { timeout: PATIENCE_MS });
const lampIs = (page, lamp, level) =>
  until(page, ([lamp, level]) => document.querySelector(`[data-lamp=${lamp}]`)?.dataset.level === level, [lamp, level]);
const waiting = (page) =>
  page.$eval("#backlog .figure .value", (value) => Number(value.textContent.replaceAll(",", "")));
const waitsMoreThan = (page, number) =>
  until(page, (number) => Number(document.querySelector("#backlog .figure .value").textContent.replaceAll(",", "")) > number, number);
const waitsLessThan = (page, number) =>
  until(page, (number) => Number(document.querySelector("#backlog .figure .value").textContent.replaceAll(",", "")) < number, number);
// How high the line of what waits stands at its end, and at its highest, in the plot's own units above the ground.
const heights = (page) =>
  page.$eval("#backlog .plot.wide .line.waiting", (line) => {
    const ys = line.getAttribute("d").split(/[ML]/).slice(1).map((point) => Number(point.split(" ")[1]));
    const ground = Number(line.ownerSVGElement.querySelector(".tick").getAttribute("y1"));
    return { last: ground - ys.at(-1), most: ground - Math.min(...ys) };
  });

// html-validate goes by the HTML standard and WCAG.
const validate = new HtmlValidate({
  extends: ["html-validate:standard", "html-validate:a11y", "html-validate:document"],
  rules: {
    "no-inline-style": "error",
    // What is loaded comes from the same program as the page.
    "require-sri": "off",
    // Only without scripts, where it is the one way; it comes back to the same place.
    "meta-refresh": "off",
  },
});
async function isValid(where = "") {
  const html = await (await fetch(address + where)).text();
  const report = await validate.validateString(html);
  const messages = report.results.flatMap((result) => result.messages.map((one) => `${one.line}:${one.column} ${one.ruleId}: ${one.message}`));
  assert.deepEqual(messages, []);
}

async function picture(name, options) {
  const { full = false, kept = true, ...rest } = options;
  const { page, close } = await open(rest, "?span=5min");
  const file = path.join(given.pictures, `${name}.png`);
  await page.screenshot({ path: file, fullPage: full, animations: "disabled" });
  await close();
  if (given.images && kept) {
    const small = inPalette(readFileSync(file));
    assert.ok(small.length < PICTURE_MAX, `${name}.png has ${small.length} bytes`);
    mkdirSync("docs/images", { recursive: true });
    writeFileSync(`docs/images/${name}.png`, small);
  }
}

const DESK = { viewport: { width: 1280, height: 1000 } };
const PHONE = { viewport: { width: 360, height: 1300 }, isMobile: true, hasTouch: true };
const WALL = { viewport: { width: 1920, height: 1080 }, colorScheme: "dark" };

await test("the console", async (suite) => {
  const main = await open();

  await suite.test("loads, and every lamp is green and says so in a word", async () => {
    for (const lamp of LAMPS) await lampIs(main.page, lamp, "ok");
    assert.deepEqual(Object.keys(await levels(main.page)), LAMPS);
    const words = await main.page.$$eval("[data-lamp] .word", (all) => all.map((word) => word.textContent));
    assert.deepEqual(words, ["well", "well", "well", "well"]);
    await until(main.page, () => document.querySelector(".sentence").textContent.startsWith("All is well"));
    assert.match(await main.page.title(), /^well · pit-7 edge-1$/);
  });

  await suite.test("shows what comes, of whom, sealed, and the fingerprint that a vehicle has verified", async () => {
    await until(main.page, () => document.querySelectorAll("tr[data-device].there").length === 8);
    await until(main.page, () => parseFloat(document.querySelector("#flow .figure .value").textContent) > 1);
    const envelope = await main.page.textContent("tr[data-device=truck-01] td:nth-of-type(3)");
    assert.match(envelope, /^sealed, [\d.]+ (B|KiB) can, \d+ s ago$/);
    const strip = await main.page.getAttribute("tr[data-device=truck-01] .strip", "aria-label");
    assert.match(strip, /^something came in [12] of the last [12] quarter-hours$/);
    const shown = await main.page.textContent("#key .fingerprint");
    assert.equal(shown.replaceAll(" ", ""), site.facts.fingerprint);
    assert.match(await main.page.textContent("#key"), /all 8 devices that sealed within 24 h/);
  });

  await suite.test("refreshes itself without being loaded again", async () => {
    const clock = await main.page.textContent("#clock time");
    await until(main.page, (clock) => document.querySelector("#clock time").textContent !== clock, clock);
    assert.equal(main.heard.navigations, 1);
  });

  await suite.test("leaves alone what somebody is typing or has selected", async () => {
    await main.page.fill("#device", "truck-0");
    await main.page.evaluate(() => document.getSelection().selectAllChildren(document.querySelector("#key .fingerprint")));
    const clock = await main.page.textContent("#clock time");
    await until(main.page, (clock) => document.querySelector("#clock time").textContent !== clock, clock);
    assert.equal(await main.page.inputValue("#device"), "truck-0");
    const selected = await main.page.evaluate(() => document.getSelection().toString());
    assert.equal(selected.replace(/\s/g, ""), site.facts.fingerprint);
    await main.page.evaluate(() => document.getSelection().removeAllRanges());
    await main.page.fill("#device", "");
  });

  if (given.images && !given.young) {
    await suite.test("has gone on for as long as a picture shows", async () => {
      const full = () => document.querySelector("#clock").textContent.match(/up [5-9] min/) !== null;
      await main.page.waitForFunction(full, undefined, { timeout: 6 * 60_000 });
    });
  }

  await suite.test("a cut WAN turns the relay's lamp amber and nothing else, and is told calmly", async () => {
    await site.tell("cut");
    await lampIs(main.page, "relay", "degraded");
    assert.deepEqual(await levels(main.page), { ingest: "ok", keys: "ok", relay: "degraded", disk: "ok" });
    await until(main.page, () => document.querySelector(".sentence").textContent.startsWith("The link to the cloud has been down for"));
    assert.equal(await main.page.textContent(".urgency"), "Nothing to do");
    assert.match(await main.page.textContent(".sentence"), /nothing is lost/);
    assert.match(await main.page.title(), /^relay degraded/);
    await until(main.page, () => document.querySelector("#backlog .shade.down") !== null);
    assert.match(await main.page.textContent("#backlog .legend"), /link down/);
  });

  await suite.test("the backlog grows, in its figure and in its plot, and the full disk is forecast", async () => {
    await waitsMoreThan(main.page, 40);
    const before = { waiting: await waiting(main.page), ...(await heights(main.page)) };
    assert.ok(before.last > 0 && before.last === before.most, JSON.stringify(before));
    await waitsMoreThan(main.page, before.waiting + 40);
    const after = await heights(main.page);
    assert.ok(after.last > 0 && after.last === after.most, JSON.stringify(after));
    await until(main.page, () => document.querySelector("#backlog .line.ahead") !== null);
    await until(main.page, () => / at the present rate the disk is full in /.test(document.querySelector(".sentence").textContent));
    assert.deepEqual(await levels(main.page), { ingest: "ok", keys: "ok", relay: "degraded", disk: "ok" });
    await isValid();
  });

  await suite.test("has pictures of it", async () => {
    await picture("console-wan-down", DESK);
    await picture("console-whole", { ...DESK, full: true, kept: false });
    await picture("console-phone-wan-down", { ...PHONE, kept: false });
    await picture("console-wall-wan-down", { ...WALL, kept: false });
  });

  await suite.test("healed, the lamp is green again and the backlog falls", async () => {
    const before = await waiting(main.page);
    await site.tell("heal");
    await lampIs(main.page, "relay", "ok");
    await waitsLessThan(main.page, before / 4);
    await until(main.page, () => document.querySelector("#backlog .shade.down") !== null, undefined);
    const { last, most } = await heights(main.page);
    assert.ok(last < most / 2, JSON.stringify({ last, most }));
    await until(main.page, () => document.querySelector(".sentence").textContent.startsWith("All is well"));
    const events = await main.page.$$eval("#events tbody th", (all) => all.map((one) => one.textContent.split(" ")[0]));
    assert.ok(events.includes("relay.down") && events.includes("relay.up"), events.join(" "));
  });

  await suite.test("a pause by hand is told from a cut", async () => {
    await site.tell("pause");
    await until(main.page, () => document.querySelector(".sentence").textContent.startsWith("Somebody has paused the relay"));
    assert.equal(await main.page.textContent(".urgency"), "Have a look");
    await until(main.page, () => document.querySelector("#backlog .shade.paused") !== null);
    await site.tell("resume");
    await lampIs(main.page, "relay", "ok");
  });

  await suite.test("a vehicle that falls silent is named before those that talk", async () => {
    await site.tell("quiet 7");
    await until(main.page, () => document.querySelector("tr[data-device]").dataset.device === "truck-07");
    assert.match(await main.page.textContent("tr[data-device=truck-07] td"), / s ago$/);
    await site.tell("talk 7");
    await until(main.page, () => document.querySelector("tr[data-device=truck-07].there") !== null);
  });

  await suite.test("has pictures of a good day", async () => {
    await picture("console", DESK);
    await picture("console-phone", PHONE);
    await picture("console-phone-whole", { ...PHONE, full: true, kept: false });
    await picture("console-wall", WALL);
  });

  await suite.test("works with scripts off, filter and spans included", async () => {
    const { page, heard, close } = await open({ javaScriptEnabled: false });
    assert.deepEqual(Object.keys(await levels(page)), LAMPS);
    assert.equal(await page.getAttribute("noscript meta", "http-equiv"), "refresh");
    assert.ok((await page.textContent(".sentence")).length > 20);
    await page.fill("#device", "truck-03");
    await page.click("form button");
    assert.deepEqual(await page.$$eval("tr[data-device]", (all) => all.map((row) => row.dataset.device)), ["truck-03"]);
    await page.click(".spans a[href*='7d']");
    assert.equal(await page.textContent(".spans [aria-current]"), "week");
    assert.equal(await page.inputValue("#device"), "truck-03", "the filter stays");
    isQuiet(heard);
    await close();
  });

  await suite.test("is valid HTML, in every span and with a filter that means harm", async () => {
    for (const where of ["", "?span=24h", "?span=7d", "?device=truck-01", "?device=%22%3E%3Cscript%3Ealert(1)%3C/script%3E"]) {
      await isValid(where);
    }
    const { page, heard, close } = await open({}, "?device=%22%3E%3Cscript%3Ealert(1)%3C/script%3E");
    assert.equal(await page.inputValue("#device"), '"><script>alert(1)</script>');
    isQuiet(heard);
    await close();
  });

  for (const [width, height] of [[320, 640], [360, 800], [768, 1024], [1280, 900], [1920, 1080], [3840, 2160]]) {
    await suite.test(`fits a screen of ${width} pixels without scrolling sideways`, async () => {
      const { page, close } = await open({ viewport: { width, height } });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= width, `${wide} pixels`);
      await close();
    });
  }

  await suite.test("has its lamps, its sentence, its plots and its key on a wall without scrolling", async () => {
    const { page, close } = await open(WALL);
    for (const part of ["#health", "#meaning", "#backlog .spans", "#flow .legend", "#key .fingerprint"]) {
      const bottom = await page.$eval(part, (element) => element.getBoundingClientRect().bottom);
      assert.ok(bottom <= 1080, `${part} ends at ${bottom}`);
    }
    await close();
  });

  for (const colorScheme of ["light", "dark"]) {
    await suite.test(`can be read, ${colorScheme}: every letter has a contrast of 4.5`, async () => {
      const { page, close } = await open({ colorScheme });
      assert.deepEqual(await page.evaluate(tooFaint), []);
      await close();
    });
  }

  await suite.test("on paper it is black on white, and asks for nothing", async () => {
    const { page, close } = await open();
    await page.emulateMedia({ media: "print" });
    assert.deepEqual(await page.evaluate(tooFaint), []);
    assert.equal(await page.isVisible("form"), false);
    await page.screenshot({ path: path.join(given.pictures, "console-paper.png"), fullPage: true });
    await close();
  });

  await suite.test("answers to its own names alone, and tells the browser to trust nobody else", async () => {
    const ask = (host, where = "/") =>
      new Promise((resolve, reject) => {
        const asked = request(address.slice(0, -1) + where, { headers: { host } }, (answer) => {
          answer.resume();
          resolve(answer);
        });
        asked.on("error", reject).end();
      });
    assert.equal((await ask("evil.example")).statusCode, 421);
    assert.equal((await ask("evil.example", "/statusz")).statusCode, 421);
    assert.equal((await ask("evil.example", "/readyz")).statusCode, 200);
    const { statusCode, headers } = await ask("localhost");
    assert.equal(statusCode, 200);
    assert.match(headers["content-security-policy"], /^default-src 'none';/);
    assert.equal(headers["x-content-type-options"], "nosniff");
    assert.equal(headers["cache-control"], "no-store");
  });

  await suite.test("complains of nothing and asks nobody else, all that time", () => isQuiet(main.heard));

  await suite.test("a gateway that is gone is not shown as if it were there, and comes back by itself", async () => {
    await site.tell("stop");
    await main.page.waitForSelector("#silence:not([hidden])");
    assert.match(await main.page.textContent("#silence"), /^No answer from the gateway since .+: what is shown is from then\.$/);
    assert.equal(await main.page.title(), "no answer");
    await main.page.screenshot({ path: path.join(given.pictures, "console-silent.png") });
    await site.tell("start");
    await main.page.waitForSelector("#silence", { state: "hidden" });
    for (const lamp of LAMPS) await lampIs(main.page, lamp, "ok");
    await until(main.page, () => document.querySelector("#backlog .shade.before") !== null);
    assert.equal(main.heard.navigations, 1, "without being loaded again");
  });
});

await browser.close();
await site.end();
