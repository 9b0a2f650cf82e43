// On TCD Distill: how the run goes, while it runs and after; also after the page was loaded anew.
import { addDisplay, chain, COLOUR, frame, html, stretched, stroke } from "./elements.mjs";
import { value } from "./graph.mjs";
import { words } from "./words.mjs";

export const EVENT = "tcd.distill";
const CHART = 64;
const PICTURE = 150;

/** 59 -> "0:59", 3725 -> "1:02:05". */
export function clock(seconds) {
  const [h, m, s] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(Math.floor);
  const pad = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

/** "120 / 1000  loss 0.0123  3.2 samples/s  4:10 left", of what is known, in `say`'s language. */
export function facts(run, say) {
  const found = [`${run.step} / ${run.steps}`];
  if (run.loss !== null) found.push(`${say.loss} ${run.loss.toPrecision(3)}`);
  const busy = run.state === "training";
  if (busy && run.samples_per_second !== null) found.push(say.speed(run.samples_per_second.toPrecision(3)));
  if (busy && run.seconds_left !== null) found.push(say.left(clock(run.seconds_left)));
  return found;
}

/** The mean of each loss and those before it, over `window` points. */
export function smooth(losses, window = 9) {
  return losses.map(([step], i) => {
    const part = losses.slice(Math.max(0, i - window + 1), i + 1);
    return [step, part.reduce((sum, [, loss]) => sum + loss, 0) / part.length];
  });
}

/** An SVG path through [step, loss] in a box of 1000 x 100, by the logarithm of the loss. */
export function curve(losses, range, steps) {
  const [low, high] = range.map(Math.log);
  return losses
    .map(([step, loss]) => [(1000 * step) / steps, 95 - (90 * (Math.log(loss) - low)) / (high - low || 1)])
    .map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`)
    .join("");
}

/** Whether a message is about this node: of its id (in a subgraph "outer:inner") and its run. */
export function concerns(run, id, name) {
  return String(run.node).split(":").at(-1) === String(id) && run.run === name;
}

function chart(run, say) {
  const losses = run.losses.filter(([, loss]) => loss > 0);
  if (losses.length < 2) return null;
  const values = losses.map(([, loss]) => loss);
  const range = [Math.min(...values), Math.max(...values)];
  const label = { color: COLOUR.muted, fontSize: "9px", lineHeight: "9px" };
  return html("div", { style: { display: "flex", gap: "6px", marginTop: "6px" }, "data-tcd": "loss" },
    html("div", { style: { ...label, display: "flex", flexDirection: "column", justifyContent: "space-between", textAlign: "right" },
      title: say.scale },
      html("span", {}, range[1].toPrecision(2)), html("span", {}, say.loss), html("span", {}, range[0].toPrecision(2))),
    html("div", { style: { flex: "1", minWidth: "0" } }, stretched(1000, 100, CHART,
      ...[5, 50, 95].map((y) => stroke(`M0 ${y}H1000`, COLOUR.line, 1, { opacity: 0.6 })),
      stroke(curve(losses, range, run.steps), COLOUR.down, 1, { opacity: 0.35 }),
      stroke(curve(smooth(losses), range, run.steps), COLOUR.down, 2))));
}

/** Pictures of a few pixels, such as the embedded model's, are enlarged to squares. */
function keepSquares({ target }) {
  target.style.imageRendering = target.naturalWidth < 320 ? "pixelated" : "auto";
}

/** Opens the picture over the page: the wheel zooms, a click or Escape closes. */
function open(element, source, title) {
  let zoom = 1;
  const picture = html("img", { src: source, alt: title, onload: keepSquares, style: { display: "block", width: "100%" } });
  const dialog = html("dialog", {
    "data-tcd": "zoom",
    style: { border: `1px solid ${COLOUR.line}`, borderRadius: "8px", padding: "0", background: COLOUR.ground,
      width: "80vw", maxWidth: "92vw", maxHeight: "92vh", overflow: "auto", cursor: "zoom-out" },
    onclick: () => dialog.close(),
    onclose: () => dialog.remove(),
    onkeydown: (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation(); // some pages take the key for themselves, and the dialog would stay
      dialog.close();
    },
    onwheel: (event) => {
      event.preventDefault();
      event.stopPropagation();
      const before = zoom;
      zoom = Math.min(8, Math.max(1, zoom * (event.deltaY < 0 ? 1.25 : 0.8)));
      const box = dialog.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      picture.style.width = `${100 * zoom}%`;
      dialog.scrollLeft = ((dialog.scrollLeft + x) * zoom) / before - x;
      dialog.scrollTop = ((dialog.scrollTop + y) * zoom) / before - y;
    },
  }, picture);
  element.append(dialog);
  dialog.showModal();
}

/** The page shows a node's last line and picture by itself, in widgets named "$$...": the panel has both. */
function hideHosts(node) {
  node.hideOutputImages = true; // in Nodes 2.0, of a page that knows it
  chain(node, "addCustomWidget", () => {
    for (const widget of node.widgets.filter(({ name }) => name?.startsWith("$$"))) {
      widget.hidden = true;
      (widget.options ??= {}).hidden = true; // Nodes 2.0 asks for this one
      widget.computeSize = () => [0, -4]; // some pages keep room for what is hidden: this, and 4 around it
    }
  });
}

export function addTraining(node, app, api) {
  const say = words(app);
  const head = html("div");
  const pictures = html("div");
  const element = frame();
  element.dataset.tcd = "training";
  element.append(head, pictures);
  let [run, chosen, shown] = [null, null, ""];
  const height = () => {
    if (!run) return 32;
    return 50 + (run.message ? 16 : 0) + (run.losses.length > 1 ? CHART + 6 : 0) + (run.images.length ? PICTURE + 32 : 0);
  };
  addDisplay(node, "tcd_training", element, height);
  hideHosts(node);

  const drawPictures = () => {
    const images = run?.images ?? [];
    const step = images.some((image) => image.step === chosen) ? chosen : images.at(-1)?.step;
    const now = JSON.stringify([images, step, run?.run]);
    if (now === shown) return; // else each message would load the pictures anew
    shown = now;
    const image = images.find((found) => found.step === step);
    if (!image) return pictures.replaceChildren();
    const query = new URLSearchParams({ filename: image.filename, subfolder: image.subfolder, type: image.type });
    const source = api.apiURL(`/view?${query}`);
    const title = say.picture(image.step);
    const tabs = images.map((found) => html("button", {
      type: "button",
      style: { border: `1px solid ${found === image ? COLOUR.down : COLOUR.line}`, borderRadius: "4px", padding: "0 5px",
        background: "none", cursor: "pointer", font: "inherit", fontSize: "10px",
        color: found === image ? COLOUR.text : COLOUR.muted },
      onclick: () => {
        chosen = found === images.at(-1) ? null : found.step; // the last one: follow the run
        drawPictures();
      },
    }, String(found.step)));
    pictures.replaceChildren(
      html("div", { style: { display: "flex", gap: "4px", margin: "6px 0 4px", overflowX: "auto", whiteSpace: "nowrap" } },
        html("span", { style: { color: COLOUR.muted, fontSize: "10px" } }, say.pictures), ...tabs),
      html("img", { src: source, alt: title, title: `${title}: ${say.enlarge}`, "data-tcd": "picture",
        style: { display: "block", width: "100%", height: `${PICTURE}px`, objectFit: "contain", cursor: "zoom-in" },
        onload: keepSquares, onclick: () => open(element, source, title) }),
    );
  };
  const draw = () => {
    if (!run) {
      head.replaceChildren(html("span", { style: { color: COLOUR.muted } }, say.empty));
      return;
    }
    const colour = { done: COLOUR.good, failed: COLOUR.bad, stopped: COLOUR.up }[run.state] ?? COLOUR.down;
    const message = say.told(run.message);
    const share = Math.min(100, (100 * run.step) / Math.max(run.steps, 1));
    head.replaceChildren(
      html("div", { style: { display: "flex", gap: "8px", whiteSpace: "nowrap", overflow: "hidden" }, "data-tcd": "facts" },
        html("b", { style: { color: colour } }, say.states[run.state] ?? run.state),
        ...facts(run, say).map((text) => html("span", {}, text))),
      html("div", { style: { height: "4px", borderRadius: "2px", background: COLOUR.line, marginTop: "5px" } },
        html("div", { style: { height: "4px", borderRadius: "2px", background: colour, width: `${share}%` } })),
      message ? html("div", { title: message,
        style: { color: COLOUR.muted, marginTop: "3px", overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap" } },
        message) : "",
      chart(run, say) ?? "");
    drawPictures();
  };
  const show = (found) => {
    const before = height();
    run = found;
    draw();
    const missing = node.computeSize()[1] - node.size[1];
    if (height() !== before && missing > 0) node.setSize([node.size[0], node.size[1] + missing]);
    node.setDirtyCanvas?.(true, true);
  };
  const mine = (found) => concerns(found, node.id, value(node, "run_name"));
  const listen = ({ detail }) => {
    if (mine(detail)) show(detail);
  };
  // Messages while the answer was under way are newer than it.
  const restore = async () => {
    try {
      const found = (await (await api.fetchApi("/tcd/runs")).json()).find(mine);
      if (found && !run) show(found);
    } catch {
      // A server of another version has no such runs: the panel waits for messages.
    }
  };
  api.addEventListener(EVENT, listen);
  chain(node, "onConfigure", restore);
  chain(node, "onRemoved", () => api.removeEventListener(EVENT, listen));
  draw();
}
