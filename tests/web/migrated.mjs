// Migrated graphs opened in the page: what their subgraphs show, and what would be sent. GRAPHS: a file with them by
// name. See session.mjs.
import { readFileSync } from "node:fs";
import { finish, load, page, seen, setting, shot } from "./session.mjs";

const graphs = JSON.parse(readFileSync(process.env.GRAPHS, "utf-8"));

/** Of every subgraph on the canvas, by title: the values of its widgets by what is written on them. */
const faces = () => page.evaluate(() => Object.fromEntries(window.app.graph._nodes
  .filter((node) => node.subgraph)
  .map((node) => [node.title, {
    widgets: Object.fromEntries((node.widgets ?? []).map((widget) => [widget.label ?? widget.name, widget.value])),
  }])));
const sent = () => page.evaluate(async () => (await window.app.graphToPrompt()).output);
const saved = () => page.evaluate(() => JSON.parse(JSON.stringify(window.app.graph.serialize())));

const open = async (graph) => {
  await page.evaluate(async (graph) => {
    await window.app.loadGraphData(graph);
    window.app.canvas.ds.scale = 0.7;
    window.app.canvas.ds.offset = [300, 300];
    window.app.canvas.setDirty(true, true);
  }, graph);
  await page.waitForTimeout(1000);
};

await load();
for (const [name, graph] of Object.entries(graphs)) {
  await open(graph);
  seen[name] = { faces: await faces(), sent: await sent(), saved: await saved() };
  await shot(`migrated-${name}`);
}

// The same subgraph in Nodes 2.0: what is written on it, and in its fields.
await setting("Comfy.VueNodes.Enabled", true);
await open(graphs.inputs);
const box = page.locator("[data-node-id]", { hasText: "sampling" }).first();
seen.vue = (await box.count()) > 0 && await box.evaluate((found) =>
  [found.innerText, ...[...found.querySelectorAll("input")].map((field) => field.value)].join("\n"));
await shot("migrated-vue");
await finish();
