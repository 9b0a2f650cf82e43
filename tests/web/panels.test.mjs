import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { describe, paths } from "../../web/drawing.mjs";
import { downstream, receivers, stepsFor } from "../../web/graph.mjs";
import { apply, summary } from "../../web/preset.mjs";
import { plan, timesteps } from "../../web/steps.mjs";
import { clock, concerns, curve, facts, smooth } from "../../web/training.mjs";
import { TOLD, translated, WORDS, words } from "../../web/words.mjs";

const draw = (gamma, order = "1") => paths(plan(timesteps(4), { gamma, order }));

test("nothing comes back up at gamma 0, and each step but the last does above", () => {
  assert.equal(draw(0).up, "");
  assert.equal(draw(0.3).up.match(/M/g).length, 3);
  assert.equal(draw(0.3).down.match(/M/g).length, 4);
});

test("more gamma goes further down", () => {
  const lowest = (gamma) => Number(draw(gamma).down.match(/L\S+ ([\d.]+)/)[1]);
  assert.ok(lowest(0) < lowest(0.3) && lowest(0.3) < lowest(1));
});

test("order 2 marks the second call", () => {
  assert.equal(draw(0.3).middles, "");
  assert.equal(draw(0.3, "2").middles.match(/M/g).length, 4);
});

function make(comfyClass, values, inputs = {}) {
  const node = { comfyClass, after: [], widgets: [] };
  node.widgets = Object.entries(values).map(([name, value]) => ({ name, value }));
  node.inputs = Object.keys(inputs).map((name) => ({ name }));
  node.outputs = [{}];
  node.getInputNode = (slot) => Object.values(inputs)[slot];
  node.getOutputNodes = () => node.after;
  for (const from of Object.values(inputs)) from.after.push(node);
  return node;
}

test("the drawing finds the steps in the scheduler of the same SamplerCustom", () => {
  const sampler = make("TCD_Sampler", { gamma: 0.5 });
  const sigmas = make("TCD_Scheduler", { steps: 6, denoise: 0.8 });
  make("SamplerCustom", { cfg: 1 }, { sampler, sigmas });
  const found = stepsFor(sampler);
  assert.deepEqual([found.steps, found.denoise, found.gamma, found.ksampler], [6, 0.8, 0.5, false]);
});

test("the drawing finds the steps through what splits the sigmas", () => {
  const sampler = make("TCD_Sampler", { gamma: 0.5 });
  const sigmas = make("SplitSigmas", { step: 4 }, { sigmas: make("TCD_Scheduler", { steps: 8 }) });
  make("SamplerCustom", { cfg: 1 }, { sampler, sigmas });
  assert.deepEqual([stepsFor(sampler).steps, stepsFor(sampler).grid], [8, true]);
});

test("the drawing of TCD Settings finds the steps in KSampler", () => {
  const settings = make("TCD_Settings", { gamma: 0.5 });
  make("KSampler", { steps: 9, denoise: 1 }, { model: settings });
  assert.deepEqual([stepsFor(settings).steps, stepsFor(settings).ksampler], [9, true]);
});

test("the drawing says whether the sampler goes by the timesteps it shows", () => {
  const grid = (scheduler, kind) => {
    const sampler = make("TCD_Sampler", { gamma: 0.5 });
    const sigmas = make(kind, { ...scheduler, steps: 6 });
    make("SamplerCustom", { cfg: 1 }, { sampler, sigmas });
    return stepsFor(sampler).grid;
  };
  assert.equal(grid({}, "TCD_Scheduler"), true);
  assert.equal(grid({ scheduler: "tcd_grid" }, "BasicScheduler"), true);
  assert.equal(grid({ scheduler: "karras" }, "BasicScheduler"), false);
  assert.equal(grid({}, "AlignYourStepsScheduler"), false);
  assert.equal(stepsFor(make("TCD_Sampler", { gamma: 0.5 })).grid, false);
  assert.equal(stepsFor(make("TCD_KSampler", { gamma: 0.5, steps: 3 })).grid, true);
});

test("each language has every word, and English is there for the others", () => {
  const page = (locale) => ({ extensionManager: { setting: { get: () => locale } } });
  const [first, ...others] = Object.values(WORDS);
  const text = (word) => (typeof word === "function" ? word(2, 3, 4, 5, 6) : JSON.stringify(word));
  for (const say of others) {
    assert.deepEqual(Object.keys(say), Object.keys(first));
    assert.deepEqual(Object.keys(say.states), Object.keys(first.states));
    for (const [name, word] of Object.entries(say)) assert.match(text(word), /[\u3040-\u30ff\u4e00-\u9fff、，]/, name);
  }
  for (const say of Object.values(WORDS)) assert.match(say.schedule, /SD/);
  assert.equal(words(page("ja")).schedule, WORDS.ja.schedule);
  assert.equal(words(page("fr")).schedule, WORDS.en.schedule);
  assert.equal(words({}).schedule, WORDS.en.schedule);
});

test("no word is left over", () => {
  const web = new URL("../../web/", import.meta.url);
  const files = readdirSync(web).filter((name) => name.endsWith(".mjs") && name !== "words.mjs");
  const code = files.map((name) => readFileSync(new URL(name, web), "utf-8")).join("");
  assert.deepEqual(Object.keys(WORDS.en).filter((name) => !code.includes(`say.${name}`)), []);
});

test("what the server says is translated, and what is not known stays", () => {
  assert.deepEqual(Object.keys(TOLD.zh), Object.keys(TOLD.ja));
  const gaps = (text) => text.split("...").length;
  for (const told of Object.values(TOLD)) {
    for (const [template, other] of Object.entries(told)) assert.equal(gaps(other), gaps(template), template);
  }
  const plan = "batch 2 x 1, everything kept, 0.25 GiB for training";
  assert.match(translated(TOLD.zh, plan), /2 x 1.*0\.25 GiB/);
  assert.notEqual(translated(TOLD.zh, plan), plan);
  assert.equal(translated(TOLD.ja, "saved as loras/a.b.safetensors"), "loras/a.b.safetensors に保存しました");
  assert.match(translated(TOLD.ja, "s was near in training; guidance cfg 4 to 9 is built in"), /near.*4.*9/);
  assert.equal(translated(TOLD.zh, "CUDA out of memory"), "CUDA out of memory");
});

test("each step says where it goes", () => {
  const [step, , , last] = plan(timesteps(4), { gamma: 0.3 });
  const text = describe(step, 0, WORDS.en);
  assert.equal(text, "step 1: from timestep 999 (noise 1.00) down to 531 (0.87), back up to 759 (0.97)");
  assert.match(describe(last, 3, WORDS.en), /^step 4: from timestep 259 .* down to 0 \(0\.03\); no noise is added$/);
  for (const say of Object.values(WORDS)) assert.match(describe(step, 0, say), /999.*531.*759/);
});

test("a preset reaches the TCD nodes after the loader and those beside them, and no others", () => {
  const loader = make("TCD_LoraLoader", { strength: 0.5 });
  const sampler = make("TCD_Sampler", { gamma: 0.5 });
  const sigmas = make("TCD_Scheduler", { steps: 6 }, { model: loader });
  const custom = make("SamplerCustom", { cfg: 7 }, { model: loader, sampler, sigmas });
  const plain = make("KSampler", { steps: 20, cfg: 7, sampler_name: "euler" }, { model: loader });
  const elsewhere = make("TCD_KSampler", { steps: 20, cfg: 7, gamma: 0 });
  assert.equal(downstream(loader).length, 3);
  assert.equal(receivers(loader).length, 3);
  assert.equal(apply(loader, { steps: 2, cfg: 1, gamma: 0.1, strength: 1 }), 3);
  const values = (node) => node.widgets.map((widget) => widget.value);
  assert.deepEqual([loader, sampler, sigmas, custom].map(values), [[1], [0.1], [2], [1]]);
  assert.deepEqual([plain, elsewhere].map(values), [[20, 7, "euler"], [20, 7, 0]]);
});

test("a preset with nothing to set changes nothing", () => {
  const loader = make("TCD_LoraLoader", { strength: 0.5 });
  assert.equal(apply(loader, { steps: 2, cfg: 1, gamma: 0.1, strength: 1 }), 0);
  assert.equal(loader.widgets[0].value, 0.5);
});

test("what is said of a preset and of a run", () => {
  assert.equal(summary({ steps: 1, cfg: 1, gamma: 1, strength: 0.125 }, WORDS.en), "strength 0.125, 1 step, cfg 1, gamma 1");
  assert.deepEqual([59, 61, 3725.9].map(clock), ["0:59", "1:01", "1:02:05"]);
  const run = { step: 5, steps: 10, state: "training", loss: 0.12345, samples_per_second: 3.21, seconds_left: 61 };
  assert.deepEqual(facts(run, WORDS.en), ["5 / 10", "loss 0.123", "3.21 samples/s", "1:01 left"]);
  assert.deepEqual(facts(run, WORDS.zh), ["5 / 10", "损失 0.123", "3.21 样本/秒", "剩余 1:01"]);
  assert.deepEqual(facts({ ...run, state: "done", loss: null }, WORDS.en), ["5 / 10"]);
});

test("a run belongs to the node with its id and its name", () => {
  assert.ok(concerns({ node: "7:3", run: "a" }, 3, "a"));
  assert.ok(!concerns({ node: "3", run: "b" }, 3, "a") && !concerns({ node: "13", run: "a" }, 3, "a"));
});

test("the loss curve goes by the logarithm, and its mean looks back only", () => {
  assert.equal(curve([[0, 1], [5, 10], [10, 100]], [1, 100], 10), "M0.0 95.0L500.0 50.0L1000.0 5.0");
  assert.deepEqual(smooth([[0, 4], [1, 2], [2, 0]], 2), [[0, 4], [1, 3], [2, 1]]);
});
