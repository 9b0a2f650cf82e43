// A distillation by the template for it, with the pack's own model as the teacher: the panel while it runs, after
// the page was loaded anew in the middle, and at the end. See session.mjs.
import { command, finish, load, openTemplate, page, pictures, seen, setting, shot } from "./session.mjs";

const run = {
  run_name: "page-test", steps: 150, batch: 2, width: 16, height: 16,
  prompts: "happy person, red hair, glasses\nsad person, blue hair, brown hat\nhappy person, sunglasses",
  settings: "validate_every = 50\nvalidation_prompts = 2\ntrajectories = 16",
};
const facts = () => page.locator('[data-tcd="facts"]').innerText();
const look = (type) => page.evaluate((type) => {
  const { canvas, graph } = window.app;
  const node = graph._nodes.find((found) => found.comfyClass === type);
  canvas.ds.scale = 0.7;
  canvas.ds.offset = [200 - node.pos[0], 140 - node.pos[1]];
  canvas.setDirty(true, true);
}, type);
// Nodes that TCD Distill covers, and what the page itself shows on it of the run.
const around = () => page.evaluate(() => {
  const { app, LiteGraph } = window;
  const box = ({ pos: [x, y], size: [width, height] }) => [x, y - LiteGraph.NODE_TITLE_HEIGHT, x + width, y + height];
  const distill = app.graph._nodes.find((node) => node.comfyClass === "TCD_Distill");
  const [left, top, right, bottom] = box(distill);
  const covered = app.graph._nodes.filter((node) => {
    const [x, y, end, low] = box(node);
    return node !== distill && x < right && left < end && y < bottom && top < low;
  });
  const hosts = distill.widgets.filter((widget) => widget.name.startsWith("$$"));
  return { covered: covered.map((node) => node.type), height: bottom - top,
    hosts: hosts.length, visible: hosts.filter((widget) => distill.isWidgetVisible(widget)).map(({ name }) => name) };
});

await load();
await openTemplate("tcd-distill-your-checkpoint");
await page.keyboard.press("Escape"); // the list of models to download
seen.before = await around();
await look("TCD_Distill");
await shot("distill-before");

// As the template's note says: the embedded model in the checkpoint's place, and words that it knows.
await page.evaluate((run) => {
  const { app, LiteGraph } = window;
  const all = (type) => app.graph._nodes.filter((node) => node.comfyClass === type);
  const set = (node, values) => {
    for (const [name, to] of Object.entries(values)) node.widgets.find((found) => found.name === name).value = to;
  };
  const [loader] = all("CheckpointLoaderSimple");
  const [distill] = all("TCD_Distill");
  const texts = all("CLIPTextEncode");
  const model = LiteGraph.createNode("TCD_EmbeddedModel");
  app.graph.add(model);
  model.pos = [...loader.pos];
  app.graph.remove(loader);
  app.graph.remove(all("EmptyLatentImage")[0]);
  model.connect(0, distill, "model");
  for (const node of [distill, ...texts]) model.connect(1, node, "clip");
  for (const node of [distill, ...all("VAEDecode")]) model.connect(2, node, "vae");
  model.connect(3, all("TCD_KSampler")[0], "latent_image");
  set(model, { lora: "none", batch_size: 1 });
  set(texts[0], { text: "happy person, red hair" });
  set(distill, run);
}, run);
await look("TCD_Distill");
await command("Comfy.QueuePrompt");
await page.waitForSelector('[data-tcd="training"] [data-tcd="loss"]');
seen.training = await facts();
seen.panel = await page.locator('[data-tcd="training"]').innerText();
await shot("distill");

await load(); // the page brings its last graph back by itself
await page.waitForSelector('[data-tcd="training"] [data-tcd="loss"]');
seen.reloaded = await facts();
await shot("distill-reloaded");
await page.waitForFunction(() => /done/.test(document.querySelector('[data-tcd="facts"]').textContent));
await page.waitForFunction(() => document.querySelector('[data-tcd="picture"]')?.naturalWidth > 0);
seen.done = await facts();
seen.picture = await page.locator('[data-tcd="picture"]').evaluate((image) => [image.naturalWidth, image.naturalHeight]);
seen.steps = await page.locator('[data-tcd="training"] button').allInnerTexts();
await page.waitForFunction(() => window.app.graph._nodes.find((node) => node.comfyClass === "TCD_Distill").imgs?.length);
seen.after = await around();
await shot("distill-done");

await page.locator('[data-tcd="picture"]').click();
seen.zoomed = await page.locator('dialog[data-tcd="zoom"]').isVisible();
await page.mouse.move(750, 475);
await page.mouse.wheel(0, -200);
seen.zoom = await page.locator('dialog[data-tcd="zoom"] img').evaluate((image) => image.style.width);
await shot("zoom");
await page.keyboard.press("Escape");
seen.closed = (await page.locator('dialog[data-tcd="zoom"]').count()) === 0;
await setting("Comfy.ColorPalette", "light");
await shot("distill-light");
await look("SaveImage"); // out of view, a node does not load its pictures
seen.student = await pictures("SaveImage");
await shot("distill-student");
await look("TCD_Distill");
await setting("Comfy.VueNodes.Enabled", true);
await page.waitForTimeout(1500);
await shot("distill-vue");
await finish();
