// Elements, and the theme's colours. Nothing here touches the document outside what is returned.

const SVG = "http://www.w3.org/2000/svg";
export const COLOUR = {
  text: "var(--input-text, #ddd)",
  muted: "var(--descrip-text, #999)",
  line: "var(--border-color, #4e4e4e)",
  ground: "var(--comfy-input-bg, #222)",
  down: "var(--p-primary-color, #60a5fa)",
  up: "var(--p-orange-400, #fb923c)",
  good: "var(--p-green-500, #22c55e)",
  bad: "var(--error-text, #ff4444)",
};

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") Object.assign(element.style, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Lines that keep their width however the drawing is stretched. */
export function stroke(d, colour, width = 1.5, more = {}) {
  return svg("path", {
    d, fill: "none", stroke: colour, "stroke-width": width, "stroke-linecap": "round",
    "stroke-linejoin": "round", "vector-effect": "non-scaling-stroke", ...more,
  });
}

/** A drawing as wide as its parent: the coordinates are stretched, the lines are not. */
export function stretched(width, height, pixels, ...children) {
  return svg("svg", {
    viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none",
    style: { display: "block", width: "100%", height: `${pixels}px` },
  }, ...children);
}

/** The frame of each of our widgets. */
export function frame() {
  return html("div", {
    style: {
      boxSizing: "border-box", width: "100%", padding: "6px 8px", borderRadius: "6px", overflow: "hidden",
      background: COLOUR.ground, color: COLOUR.text, font: "11px/1.35 Inter, system-ui, sans-serif",
    },
  });
}

const MARGIN = 8; // pixels around a widget's element, within the widget's height

/**
 * A widget at the end of the node that is in neither the workflow nor the prompt: positions of others stay.
 * `height()` of the element in pixels. The node grows to hold it. Nodes 2.0 stretches a widget over what room a node
 * has to spare, such as that of folded inputs: over an empty box around our element.
 */
export function addDisplay(node, name, element, height) {
  const outer = () => height() + 2 * MARGIN;
  const widget = node.addDOMWidget(name, "tcd-display", html("div", {}, element), {
    serialize: false, hideOnZoom: false, hideInPanel: true, getValue: () => "", setValue: () => {},
    margin: MARGIN, getMinHeight: outer, getMaxHeight: outer,
  });
  widget.serialize = false;
  // A node from the menu has its size from before the widget was there.
  const needed = node.computeSize();
  node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
  return widget;
}

/** Calls `after` whenever `method` of the object has run. */
export function chain(object, method, after) {
  const before = object[method];
  object[method] = function (...given) {
    const result = before?.apply(this, given);
    after.apply(this, given);
    return result;
  };
}
