// The steps of a run, as `samplers` plans them (Algorithm 4), for SD's and SDXL's schedule. Written a second
// time because a slider cannot wait for the server; tests/web/steps.json holds what `samplers` says.

export const NUM_TRAIN = 1000;
const BETAS = [0.00085, 0.012];

/** Noise scale sigma of a variance-preserving state at each timestep. */
export const sigmas = (() => {
  const [start, end] = BETAS.map(Math.sqrt);
  let alphaBar = 1;
  return Array.from({ length: NUM_TRAIN }, (_, i) => {
    alphaBar *= 1 - (start + ((end - start) * i) / (NUM_TRAIN - 1)) ** 2;
    return Math.sqrt(1 - alphaBar);
  });
})();

/** The timesteps to start each step from, descending. An Error where they do not fit. */
export function timesteps(steps, denoise = 1, originalSteps = 50) {
  const count = originalSteps > 0 ? Math.min(originalSteps, NUM_TRAIN) : NUM_TRAIN;
  const skip = Math.floor(NUM_TRAIN / count);
  const kept = Math.trunc(count * denoise);
  if (steps < 1 || steps > kept) {
    throw new RangeError(`${steps} steps do not fit into ${kept} timesteps (original_steps ${count}, denoise ${denoise})`);
  }
  const stride = kept / steps;
  return Array.from({ length: steps }, (_, i) => (kept - Math.floor(i * stride)) * skip - 1);
}

/** Where KSampler with tcd_grid starts each step: it asks for more steps and takes the last ones. */
export function ksamplerTimesteps(steps, denoise = 1) {
  const all = denoise > 0 && denoise < 1 ? Math.trunc(steps / denoise) : steps;
  return timesteps(all, 1, all <= 50 ? 50 : 0).slice(-steps);
}

/** The timestep s that a step goes down to before it comes back up to `next`. */
export function target(next, gamma) {
  return Math.floor(Math.fround(Math.fround(1 - gamma) * next));
}

/** Noise scale halfway between two in log-SNR, where TCF(2) asks the model a second time. */
export function middle(now, down) {
  const lambda = (sigma) => 0.5 * Math.log(1 / sigma ** 2 - 1);
  return Math.sqrt(1 / (1 + Math.exp(lambda(now) + lambda(down))));
}

/**
 * One {t, s, next, now, down, up, middle} a step: timesteps, and noise scales at t, at s, and after the step.
 * `gammaEnd` below 0 is gamma; `middle` is null unless `order` is "2".
 */
export function plan(times, { gamma, gammaEnd = -1, order = "1", end = "official" }) {
  const last = times.length - 1;
  const goal = gammaEnd < 0 ? gamma : gammaEnd;
  return times.map((t, i) => {
    const next = i < last ? times[i + 1] : 0;
    const share = i / Math.max(last - 1, 1);
    const s = i < last ? target(next, gamma + (goal - gamma) * share) : 0;
    const clean = i === last && end === "clean";
    const now = sigmas[t];
    const down = clean ? 0 : sigmas[s];
    const up = clean ? 0 : sigmas[next];
    return { t, s, next, now, down, up, middle: order === "2" && down > 0 && down < now ? middle(now, down) : null };
  });
}
