// Drawing, preset and help on a graph of their own, in two themes and in Nodes 2.0. See session.mjs.
import { down, finish, load, page, seen, setting, shot } from "./session.mjs";

const build = () => page.evaluate(() => {
  const { app } = window;
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
  add("TCD_Distill", 800, 60, {}, 380);
  loader.connect(0, sampler, 0);
  loader.widgets.find((w) => w.name === "lora_name").callback("tcd-test.safetensors");
  app.canvas.ds.scale = 0.9;
  app.canvas.ds.offset = [60, 60];
  app.canvas.setDirty(true, true);
});
const gamma = (to) => page.evaluate((to) => {
  const widget = window.app.graph._nodes.find((n) => n.comfyClass === "TCD_KSampler").widgets.find((w) => w.name === "gamma");
  widget.value = to;
  widget.callback(to);
}, to);

await load();
seen.registered = await page.evaluate(() => window.app.extensions.filter((e) => /trajectory-consistency/.test(e.name)).length);
await build();
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

seen.unchosen = await page.evaluate(async () => {
  const node = window.LiteGraph.createNode("TCD_LoraLoader");
  node.widgets.find((widget) => widget.name === "lora_name").value = undefined; // as without any LoRA
  await new Promise((done) => setTimeout(done, 100));
  const { element } = node.widgets.at(-1);
  return [element.textContent, element.querySelector("button").style.display];
});
seen.schedule = await page.locator('[data-tcd="schedule"]').first().innerText();

await shot("dark");
await setting("Comfy.ColorPalette", "light");
await shot("light");
await setting("Comfy.VueNodes.Enabled", true);
await page.waitForTimeout(1500);
seen.vue = await page.locator('[data-tcd="drawing"] [data-tcd="down"]').count() > 0;
await gamma(0);
if (seen.vue) {
  seen.flat = await page.locator('[data-tcd="drawing"] [data-tcd="up"]').first().getAttribute("d");
  seen.spare = await page.locator('[data-tcd="drawing"]').first().evaluate((frame) =>
    frame.getBoundingClientRect().bottom - frame.lastElementChild.getBoundingClientRect().bottom);
}
await shot("vue-light");
await setting("Comfy.ColorPalette", "dark");
await gamma(0.3);
await shot("vue-dark");
await page.evaluate(() => window.app.graph.clear());
await page.waitForTimeout(700);
seen.left = await page.locator("[data-tcd]").count();

// The help, by the button over a selected node; each time on a page that was loaded anew, for the panel covers
// other nodes, some pages keep the toolbox away after Nodes 2.0, and a change of language makes it anew.
const help = async (language, name) => {
  await setting("Comfy.VueNodes.Enabled", false);
  await setting("Comfy.Locale", language);
  await load();
  await build();
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
seen.help = { en: await help("en", "help") };

// Newer pages list a node's widgets beside the graph too, and one that they cannot show there got the list's width.
const width = () => page.locator('[data-tcd="drawing"]').first().evaluate((frame) => frame.offsetWidth);
seen.widths = [await width()];
const list = page.getByText("Parameters", { exact: true }).first();
if (await list.count()) await list.click();
await page.waitForTimeout(1000);
await page.evaluate(() => window.app.canvas.setDirty(true, true));
await shot("list");
seen.widths.push(await width());

seen.help.ja = await help("ja", "help-ja");
await page.waitForSelector('[data-tcd="preset"] button:visible');
seen.translated = {};
for (const name of ["drawing", "preset", "training"]) {
  seen.translated[name] = await page.locator(`[data-tcd="${name}"]`).first().innerText();
}
await finish();
