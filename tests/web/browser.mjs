// A real browser on a real host: node browser.mjs URL CHROMIUM FOLDER; playwright-core from NODE_PATH's folder.
// Prints a JSON object of what was seen, and puts screenshots into FOLDER.
import { createRequire } from "node:module";

const [url, executablePath, folder] = process.argv.slice(2);
const { chromium } = createRequire(`${process.env.PLAYWRIGHT}/`)("playwright-core");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage({ viewport: { width: 1500, height: 950 } });
page.setDefaultTimeout(240000); // a busy machine takes its time
const seen = { errors: [] };
page.on("console", (message) => {
  const from = `${message.text()} ${message.location().url}`;
  if (["error", "warning"].includes(message.type()) && /tcd/i.test(from)) seen.errors.push(from);
});
// The page of 0.3.64 throws an error of its own at its start: only those that pass through our files are ours.
page.on("pageerror", (error) => /extensions\/ComfyUI%20TCD/.test(error.stack) && seen.errors.push(String(error.stack)));

// A new user gets the templates in place of a graph; and the page's own first graph, loaded late, would
// replace ours.
await fetch(`${url}/settings`, { method: "POST", body: JSON.stringify({ "Comfy.TutorialCompleted": true }) });
const load = async () => {
  await page.goto(url);
  await page.waitForFunction(() => window.app?.graph?._nodes?.length && window.LiteGraph?.registered_node_types?.TCD_Distill);
};
const build = (theme, vue) => page.evaluate(async ([theme, vue]) => {
  const { app } = window;
  await app.extensionManager.setting.set("Comfy.ColorPalette", theme);
  await app.extensionManager.setting.set("Comfy.VueNodes.Enabled", vue);
  app.graph.clear();
  const add = (type, x, y, values = {}, width = 330) => {
    const node = window.LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [x, y];
    for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value;
    node.setSize([width, node.computeSize()[1]]);
    return node;
  };
  const loader = add("TCD_LoraLoader", 40, 60, { lora_name: "tcd-test.safetensors" });
  const sampler = add("TCD_KSampler", 420, 60, { steps: 6, gamma: 0.3 });
  const test = add("TestRun", 40, 420);
  const distill = add("TCD_Distill", 800, 60, { run_name: "page-test" }, 380);
  loader.connect(0, sampler, 0);
  loader.widgets.find((w) => w.name === "lora_name").callback("tcd-test.safetensors");
  app.canvas.ds.scale = 0.9;
  app.canvas.ds.offset = [60, 60];
  app.canvas.setDirty(true, true);
  test.widgets.find((w) => w.name === "node").value = String(distill.id);
  return { distill: distill.id };
}, [theme, vue]);
const down = () => page.locator('[data-tcd="drawing"] [data-tcd="down"]').first().getAttribute("d");
const gamma = (to) => page.evaluate((to) => {
  const widget = window.app.graph._nodes.find((n) => n.comfyClass === "TCD_KSampler").widgets.find((w) => w.name === "gamma");
  widget.value = to;
  widget.callback(to);
}, to);
const shot = async (name) => {
  await page.waitForTimeout(500);
  await page.screenshot({ path: `${folder}/${name}.png` });
};

await load();
seen.registered = await page.evaluate(() => window.app.extensions.filter((e) => /trajectory-consistency/.test(e.name)).length);
await build("dark", false);
await page.waitForSelector('[data-tcd="drawing"] [data-tcd="down"]');
await page.waitForTimeout(1000); // values that are set without a callback are seen by the timer
seen.before = await down();
await gamma(0.8);
seen.after = await down();
await page.waitForSelector('[data-tcd="preset"] button:visible');
seen.preset = await page.locator('[data-tcd="preset"]').first().innerText();
const values = () => page.evaluate(() => Object.fromEntries(
  window.app.graph._nodes.find((n) => n.comfyClass === "TCD_KSampler").widgets.map((w) => [w.name, w.value])));
seen.untouched = (await values()).gamma;
await page.locator('[data-tcd="preset"] button').first().click();
seen.applied = await values();
const prompt = () => page.evaluate(async () => {
  const { output, workflow } = await window.app.graphToPrompt();
  return { text: JSON.stringify(output), saved: JSON.stringify(workflow) };
});
seen.prompt = await prompt();

seen.schedule = await page.locator('[data-tcd="schedule"]').first().innerText();

// Only what feeds the test's own output node: the distillation itself has no model here.
await page.evaluate(async () => {
  const { output } = await window.app.graphToPrompt();
  const test = Object.entries(output).filter(([, node]) => node.class_type === "TestRun");
  await window.app.api.fetchApi("/prompt", {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ prompt: Object.fromEntries(test), client_id: window.app.api.clientId }),
  });
});
await page.waitForSelector('[data-tcd="training"] [data-tcd="loss"]');
seen.training = await page.locator('[data-tcd="facts"]').innerText();
seen.panel = await page.locator('[data-tcd="training"]').innerText();
const saved = await page.evaluate(() => JSON.stringify(window.app.graph.serialize()));
await shot("dark");
await load();
await page.evaluate(async (graph) => window.app.loadGraphData(JSON.parse(graph)), saved);
await page.waitForSelector('[data-tcd="training"] [data-tcd="loss"]');
seen.reloaded = await page.locator('[data-tcd="facts"]').innerText();
await page.waitForFunction(() => /done/.test(document.querySelector('[data-tcd="facts"]').textContent));
await page.waitForFunction(() => document.querySelector('[data-tcd="picture"]')?.naturalWidth > 0);
await shot("reloaded");
await page.locator('[data-tcd="picture"]').click();
seen.zoomed = await page.locator('dialog[data-tcd="zoom"]').isVisible();
await page.mouse.move(750, 475);
await page.mouse.wheel(0, -200);
seen.zoom = await page.locator('dialog[data-tcd="zoom"] img').evaluate((image) => image.style.width);
await shot("zoom");
await page.keyboard.press("Escape");
await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.ColorPalette", "light"));
await shot("light");
await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", true));
await page.waitForTimeout(1500);
seen.vue = await page.locator('[data-tcd="drawing"] [data-tcd="down"]').count() > 0;
await gamma(0);
if (seen.vue) seen.flat = await page.locator('[data-tcd="drawing"] [data-tcd="up"]').first().getAttribute("d");
await shot("vue-light");
await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.ColorPalette", "dark"));
await gamma(0.3);
await shot("vue-dark");
await page.evaluate(() => window.app.graph.clear());
await page.waitForTimeout(700);
seen.left = await page.locator("[data-tcd]").count();

// The help, by the button over a selected node; each time on a page that was loaded anew, for the panel covers
// other nodes, some pages keep the toolbox away after Nodes 2.0, and a change of language makes it anew.
const help = async (language, name) => {
  await page.evaluate((language) => window.app.extensionManager.setting.set("Comfy.Locale", language), language);
  await load();
  await build("dark", false);
  await page.evaluate(async () => {
    const { app } = window;
    app.canvas.ds.offset = [60, 240]; // the button is not to come under the page's bar
    await new Promise((done) => setTimeout(done, 1000));
    app.canvas.selectNode(app.graph._nodes.find((n) => n.comfyClass === "TCD_KSampler"));
  });
  const inputs = { en: "Inputs", ja: "\u5165\u529b" }[language];
  const heading = page.locator("h2", { hasText: inputs });
  const button = page.locator('[data-testid="info-button"]:visible').first();
  await button.waitFor();
  await page.waitForTimeout(3000); // some pages open the panel again by themselves
  if (!(await heading.isVisible())) await button.click();
  await heading.waitFor();
  await shot(name);
  return page.evaluate((inputs) => {
    const panel = [...document.querySelectorAll("h2")].find((h) => h.textContent.includes(inputs)).parentElement;
    const all = (tag) => [...panel.querySelectorAll(tag)].map((found) => found.textContent);
    return { titles: all("h1"), parts: all("h2"), items: all("li"), raw: /\*\*|^#/m.test(panel.innerText) };
  }, inputs);
};
seen.help = { en: await help("en", "help"), ja: await help("ja", "help-ja") };
seen.translated = await page.locator('[data-tcd="schedule"]').first().innerText();
console.log(JSON.stringify(seen));
await browser.close();
