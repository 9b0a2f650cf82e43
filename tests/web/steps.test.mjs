import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { ksamplerTimesteps, plan, timesteps } from "../../web/steps.mjs";

const cases = JSON.parse(readFileSync(new URL("./steps.json", import.meta.url), "utf8"));
const close = (a, b, what) => assert.ok(Math.abs(a - b) < 2e-6, `${what}: ${a} instead of ${b}`);

for (const { rows, ...given } of cases) {
  test(`the sampler's own steps: ${JSON.stringify(given)}`, () => {
    const times = timesteps(given.steps, given.denoise, given.originalSteps);
    const steps = plan(times, { ...given, order: "2" });
    assert.equal(steps.length, rows.length);
    steps.forEach((step, i) => {
      const [t, s, next, now, down, up, middle] = rows[i];
      assert.deepEqual([step.t, step.s, step.next], [t, s, next]);
      close(step.now, now, "noise at t");
      close(step.down, down, "noise at s");
      close(step.up, up, "noise after the step");
      if (middle === null) assert.equal(step.middle, null);
      else close(step.middle, middle, "halfway");
    });
  });
}

test("only order 2 asks the model halfway", () => {
  const steps = plan(timesteps(4), { gamma: 0.3, order: "multistep" });
  assert.deepEqual(steps.map((step) => step.middle), [null, null, null, null]);
});

test("steps that do not fit are refused with the numbers", () => {
  assert.throws(() => timesteps(51), /51 steps do not fit into 50 timesteps/);
  assert.throws(() => timesteps(4, 0), /4 steps do not fit into 0/);
});

test("KSampler takes the last of more steps", () => {
  assert.deepEqual(ksamplerTimesteps(4, 0.5), timesteps(8).slice(4));
  assert.equal(ksamplerTimesteps(40, 0.5).length, 40);
});
