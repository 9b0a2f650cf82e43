// The drawing under the sampler's settings: how far each step goes down in noise, and comes back up.
import { addDisplay, chain, COLOUR, frame, html, stretched, stroke, svg } from "./elements.mjs";
import { stepsFor } from "./graph.mjs";
import { ksamplerTimesteps, plan, timesteps } from "./steps.mjs";
import { words } from "./words.mjs";

const PIXELS = 76;
const COLUMN = 100;
const [TOP, BOTTOM] = [5, 95];
const DOWN_SHARE = 0.62; // of a column; the way up takes the rest

const y = (sigma) => +(BOTTOM - (BOTTOM - TOP) * sigma).toFixed(2);

/** The paths of the drawing: {down, up, dots, middles, width} in a height of 100. Pure. */
export function paths(steps) {
  const found = { down: "", up: "", dots: "", middles: "", width: steps.length * COLUMN + 12 };
  steps.forEach((step, i) => {
    const x = i * COLUMN + 6;
    const rises = step.up > step.down;
    const low = x + COLUMN * (rises ? DOWN_SHARE : 1);
    found.dots += `M${x} ${y(step.now)}h0`;
    found.down += `M${x} ${y(step.now)}L${low} ${y(step.down)}`;
    if (rises) found.up += `M${low} ${y(step.down)}L${x + COLUMN} ${y(step.up)}`;
    if (step.middle !== null) {
      const share = (step.now - step.middle) / (step.now - step.down);
      found.middles += `M${+(x + (low - x) * share).toFixed(2)} ${y(step.middle)}h0`;
    }
  });
  return found;
}

/** What a step does, in `say`'s language. Pure. */
export function describe(step, i, say) {
  const start = say.step(i + 1, step.t, step.now.toFixed(2), step.s, step.down.toFixed(2));
  return start + (step.up > step.down ? say.back(step.next, step.up.toFixed(2)) : say.last);
}

function key(colour, text) {
  return html("span", { style: { whiteSpace: "nowrap" } },
    html("span", { style: { color: colour, fontWeight: "700" } }, "\u2501 "), text);
}

function draw(element, settings, say) {
  let steps;
  try {
    const times = settings.ksampler
      ? ksamplerTimesteps(settings.steps, settings.denoise)
      : timesteps(settings.steps, settings.denoise, settings.originalSteps);
    steps = plan(times, settings);
  } catch (error) {
    const text = settings.denoise === 0 ? say.nothing : error.message;
    element.replaceChildren(html("div", { style: { color: COLOUR.muted } }, text));
    return;
  }
  const found = paths(steps);
  const size = steps.length > 20 ? 3 : 5;
  const grid = [0, 0.5, 1].map((s) => stroke(`M0 ${y(s)}H${found.width}`, COLOUR.line, 1, { opacity: 0.6 }));
  const areas = steps.map((step, i) =>
    svg("rect", { x: i * COLUMN + 6, y: 0, width: COLUMN, height: 100, fill: "transparent" },
      svg("title", {}, describe(step, i, say))));
  const picture = stretched(found.width, 100, PIXELS, ...grid,
    stroke(found.up, COLOUR.up, 1.6, { "data-tcd": "up", "stroke-dasharray": "3 3" }),
    stroke(found.down, COLOUR.down, 2, { "data-tcd": "down" }),
    stroke(found.middles, COLOUR.text, size, {}),
    stroke(found.dots, COLOUR.down, size, {}), ...areas);
  const calls = steps.length * (settings.order === "2" ? 2 : 1);
  const axis = html("div", {
    style: { display: "flex", flexDirection: "column", justifyContent: "space-between", color: COLOUR.muted,
      fontSize: "9px", textAlign: "right", height: `${PIXELS}px`, lineHeight: "9px" },
  }, html("span", {}, say.noise), html("span", {}, say.clean));
  const schedule = settings.grid ? say.schedule : say.assumed;
  element.replaceChildren(
    html("div", { style: { display: "flex", gap: "6px" } }, axis,
      html("div", { style: { flex: "1", minWidth: "0" } }, picture)),
    html("div", { style: { display: "flex", gap: "10px", marginTop: "4px", color: COLOUR.muted, fontSize: "10px",
      overflow: "hidden" } },
      key(COLOUR.down, say.down), key(COLOUR.up, say.up),
      html("span", { style: { marginLeft: "auto", whiteSpace: "nowrap" }, "data-tcd": "caption" },
        say.calls(steps.length, calls))),
    html("div", { style: { color: COLOUR.muted, fontSize: "9px", lineHeight: "13px", overflow: "hidden",
      textOverflow: "ellipsis", whiteSpace: "nowrap" }, title: schedule, "data-tcd": "schedule" }, schedule),
  );
}

export function addDrawing(node, app) {
  const element = frame();
  element.dataset.tcd = "drawing";
  let drawn = "";
  const redraw = () => {
    const settings = stepsFor(node);
    const say = words(app);
    const now = JSON.stringify([settings, say.noise]);
    if (now !== drawn) draw(element, settings, say);
    drawn = now;
  };
  addDisplay(node, "tcd_drawing", element, () => 120);
  for (const widget of node.widgets) chain(widget, "callback", redraw);
  // Steps may stand in another node, and undo and loading call nobody.
  const timer = setInterval(redraw, 300);
  chain(node, "onRemoved", () => clearInterval(timer));
  redraw();
}
