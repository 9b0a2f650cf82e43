// What stands in the graph around a node. Reads and sets widgets; makes and removes nothing.

export const widget = (node, name) => node.widgets?.find((found) => found.name === name);
export const value = (node, name, otherwise) => widget(node, name)?.value ?? otherwise;
const kind = (node) => node.comfyClass ?? node.type;

/** The node that feeds an input, or null. */
export function feeding(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot < 0 ? null : (node.getInputNode(slot) ?? null);
}

/** All nodes that a node's outputs lead to, nearest first. */
export function downstream(node) {
  const found = [];
  const seen = new Set([node]);
  for (let queue = [node]; queue.length; ) {
    const at = queue.shift();
    for (let slot = 0; slot < (at.outputs?.length ?? 0); slot++) {
      for (const next of at.getOutputNodes(slot) ?? []) {
        if (seen.has(next)) continue;
        seen.add(next);
        found.push(next);
        queue.push(next);
      }
    }
  }
  return found;
}

/** Whether a node samples at the timesteps of TCD Scheduler. */
function onGrid(node) {
  const scheduler = value(node, "scheduler");
  return scheduler === undefined ? kind(node).startsWith("TCD_") : scheduler === "tcd_grid";
}

/** The node with the steps whose sigmas a node takes, also through nodes that split them; or null. */
function schedulerOf(node) {
  const seen = new Set([node]);
  for (let found = feeding(node, "sigmas"); found && !seen.has(found); found = feeding(found, "sigmas")) {
    if (widget(found, "steps")) return found;
    if (!kind(found).startsWith("SplitSigmas")) return null;
    seen.add(found);
  }
  return null;
}

/**
 * What the drawing needs: the node's own settings, and steps from where they stand in the graph. `grid` is false
 * where the sigmas come from elsewhere, or from nowhere yet. The model's own schedule cannot be read in the page.
 */
export function stepsFor(node) {
  let [source, ksampler] = [node, false];
  if (!widget(node, "steps")) {
    const after = downstream(node);
    const scheduler = after.map(schedulerOf).find(Boolean);
    const sampler = after.find((next) => kind(next) === "KSampler");
    source = scheduler ?? sampler ?? node;
    ksampler = source === sampler;
  }
  return {
    steps: value(source, "steps", 4),
    denoise: value(source, "denoise", 1),
    originalSteps: value(source, "original_steps", 50),
    ksampler,
    grid: Boolean(widget(source, "steps")) && onGrid(source),
    gamma: value(node, "gamma", 0.3),
    gammaEnd: value(node, "gamma_end", -1),
    order: value(node, "order", "1"),
    end: value(node, "end", "official"),
  };
}

const TCD = ["TCD_KSampler", "TCD_Sampler", "TCD_Settings", "TCD_Scheduler"];

/** [node, names of widgets] to which settings for the LoRA that `loader` loads belong. */
export function receivers(loader) {
  const after = downstream(loader);
  const feeders = after.flatMap((node) => ["sampler", "sigmas", "guider"].map((name) => feeding(node, name)));
  const all = [...new Set([...after, ...feeders])].filter(Boolean);
  const custom = all.some((node) => kind(node) === "TCD_Sampler");
  const takes = (node) =>
    TCD.includes(kind(node)) ||
    (kind(node).startsWith("KSampler") && value(node, "sampler_name") === "tcd_sss") ||
    (custom && ["SamplerCustom", "CFGGuider"].includes(kind(node)));
  return all.filter(takes)
    .map((node) => [node, ["steps", "cfg", "gamma"].filter((name) => widget(node, name))])
    .filter(([, names]) => names.length);
}

/** Sets widgets as a hand would. */
export function set(node, name, to) {
  const found = widget(node, name);
  found.value = to;
  found.callback?.(to, undefined, node);
}
