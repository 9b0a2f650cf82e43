// What the browser tests share: node TEST.mjs URL CHROMIUM FOLDER, with playwright-core from PLAYWRIGHT's folder.
// Each prints a JSON object of what was seen, and puts screenshots into FOLDER.
import { createRequire } from "node:module";

const [url, executablePath, folder] = process.argv.slice(2);
const { chromium } = createRequire(`${process.env.PLAYWRIGHT}/`)("playwright-core");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
export const page = await browser.newPage({ viewport: { width: 1500, height: 950 } });
page.setDefaultTimeout(240000); // a busy machine takes its time

export const seen = { errors: [] };
page.on("console", (message) => {
  const from = `${message.text()} ${message.location().url}`;
  if (["error", "warning"].includes(message.type()) && /tcd/i.test(from)) seen.errors.push(from);
});
// The page of 0.3.64 throws an error of its own at its start: only those that pass through our files are ours.
page.on("pageerror", (error) => /extensions\/ComfyUI%20TCD/.test(error.stack) && seen.errors.push(String(error.stack)));

// The server keeps the settings of the test before. A new user gets the templates in place of a graph; and the
// page's own first graph, loaded late, would replace ours.
const settings = { "Comfy.TutorialCompleted": true, "Comfy.Locale": "en", "Comfy.ColorPalette": "dark" };
settings["Comfy.VueNodes.Enabled"] = false;
await fetch(`${url}/settings`, { method: "POST", body: JSON.stringify(settings) });

export const load = async () => {
  await page.goto(url);
  await page.waitForFunction(() => window.app?.graph?._nodes?.length && window.LiteGraph?.registered_node_types?.TCD_Distill);
};

export const command = (id) => page.evaluate((id) => window.app.extensionManager.command.execute(id), id);
export const setting = (id, to) => page.evaluate(([id, to]) => window.app.extensionManager.setting.set(id, to), [id, to]);

/** Of the pack, from the page's own template browser. */
export async function openTemplate(name) {
  await command("Comfy.BrowseTemplates");
  const dialog = page.locator('[role="dialog"]:visible').last();
  await dialog.getByText("ComfyUI TCD", { exact: true }).first().click();
  await dialog.getByPlaceholder(/^Search/).fill(name); // some pages list the first dozen only
  await dialog.getByText(name, { exact: true }).first().click();
  await page.waitForFunction((prefix) => window.app.graph._nodes
    .some((node) => node.comfyClass === "SaveImage" && node.widgets[0].value === prefix), `TCD/${name}`);
  await page.waitForTimeout(1000); // the view moves to the graph
}

/** Widths of the pictures that a node of this class holds, once there are any and all have loaded. */
export async function pictures(type) {
  const found = await page.waitForFunction((type) => {
    const images = window.app.graph._nodes.find((node) => node.comfyClass === type).imgs;
    return images?.length && images.every((image) => image.complete) && images.map((image) => image.naturalWidth);
  }, type);
  return found.jsonValue();
}

/** The way down in the first drawing. */
export const down = () => page.locator('[data-tcd="drawing"] [data-tcd="down"]').first().getAttribute("d");

export const shot = async (name) => {
  await page.waitForTimeout(500);
  await page.screenshot({ path: `${folder}/${name}.png` });
};

export const finish = async () => {
  console.log(JSON.stringify(seen));
  await browser.close();
};
