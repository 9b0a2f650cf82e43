// What a new user does: opens a template, moves gamma with the mouse, queues, looks at the pictures. See session.mjs.
import { command, down, finish, load, openTemplate, page, pictures, seen, setting, shot } from "./session.mjs";

/** Where on the page a share of gamma's width is, on the legacy canvas. */
const gammaAt = (share) => page.evaluate((share) => {
  const { canvas, graph } = window.app;
  const node = graph._nodes.find((found) => found.comfyClass === "TCD_KSampler");
  const widget = node.widgets.find((found) => found.name === "gamma");
  const { left, top } = canvas.canvas.getBoundingClientRect();
  const { offset, scale } = canvas.ds;
  const at = [15 + share * (node.size[0] - 30), widget.last_y + 10];
  const [x, y] = [0, 1].map((i) => (node.pos[i] + at[i] + offset[i]) * scale);
  return [left + x, top + y];
}, share);
const gamma = () => page.evaluate(() => window.app.graph._nodes
  .find((node) => node.comfyClass === "TCD_KSampler").widgets.find((widget) => widget.name === "gamma").value);

await load();
await openTemplate("tcd-embedded-no-download");
await page.waitForSelector('[data-tcd="drawing"] [data-tcd="down"]');

// The drawing before, while the button is down, and after.
seen.drawings = [await down()];
await page.mouse.move(...(await gammaAt(0.3)));
await page.mouse.down();
for (const share of [0.6, 0.8]) {
  await page.mouse.move(...(await gammaAt(share)), { steps: 4 });
  await page.waitForTimeout(500);
  seen.drawings.push(await down());
}
await page.mouse.up();
seen.gamma = await gamma();

await command("Comfy.QueuePrompt");
seen.pictures = await pictures("SaveImage");
seen.sent = await page.evaluate(async () => {
  const history = await (await window.app.api.fetchApi("/history")).json();
  return Object.values(Object.values(history).at(-1).prompt[2]).find((node) => node.class_type === "TCD_KSampler").inputs;
});
await shot("template");

// The same graph in Nodes 2.0, where the frontend shows our drawing there.
await setting("Comfy.VueNodes.Enabled", true);
await page.waitForTimeout(1500);
const sampler = page.locator("[data-node-id]", { has: page.locator('[data-tcd="drawing"]') });
seen.vue = (await sampler.count()) > 0;
if (seen.vue) {
  const shown = page.locator("[data-node-id]", { hasText: "Save Image" }).locator("img");
  await shown.first().waitFor();
  seen.shown = await shown.evaluateAll(async (all) => {
    await Promise.all(all.map((image) => image.decode()));
    return all.map((image) => image.naturalWidth);
  });
  await sampler.locator('[role="slider"]').first().focus();
  await page.keyboard.press("ArrowLeft");
  await page.waitForTimeout(500);
  seen.pressed = { gamma: await gamma(), drawing: await down() };
}
await shot("template-vue");
await finish();
