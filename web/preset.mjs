// Under the LoRA loader: how the chosen LoRA is sampled, and a button that sets it.
import { addDisplay, chain, COLOUR, frame, html } from "./elements.mjs";
import { receivers, set, value, widget } from "./graph.mjs";
import { words } from "./words.mjs";

/** "4 steps, cfg 1, gamma 0.3", in `say`'s language. */
export function summary(tip, say) {
  const strength = tip.strength === 1 ? "" : say.strength(tip.strength);
  return strength + say.preset(tip.steps, tip.cfg, tip.gamma);
}

/** Sets the settings on all nodes they belong to; the number of nodes. */
export function apply(loader, tip) {
  const found = receivers(loader);
  for (const [node, names] of found) for (const name of names) set(node, name, tip[name]);
  if (found.length && value(loader, "strength") !== tip.strength) set(loader, "strength", tip.strength);
  return found.length;
}

export function addPreset(node, app, api) {
  const say = words(app);
  const text = html("div", { style: { flex: "1", minWidth: "0" } });
  const button = html("button", {
    type: "button",
    style: { flex: "none", border: "none", borderRadius: "5px", padding: "4px 12px", cursor: "pointer",
      background: COLOUR.down, color: "var(--p-primary-contrast-color, #fff)", font: "inherit", fontWeight: "600" },
  }, say.apply);
  const element = frame();
  element.dataset.tcd = "preset";
  element.append(html("div", { style: { display: "flex", gap: "8px", alignItems: "center", height: "44px" } }, text, button));
  addDisplay(node, "tcd_preset", element, () => 58);

  let [tip, asked] = [null, null];
  const show = (first, second = "", title = "") => {
    const line = { overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap" };
    const lines = { overflow: "hidden", display: "-webkit-box", webkitBoxOrient: "vertical", webkitLineClamp: "2",
      overflowWrap: "anywhere" };
    text.replaceChildren(html("div", { style: second ? line : lines }, first),
      html("div", { style: { ...lines, color: COLOUR.muted, fontSize: "10px" } }, second));
    text.title = title;
    button.style.display = tip ? "" : "none";
  };
  button.addEventListener("click", () => {
    const count = apply(node, tip);
    const done = count ? say.applied(count) : say.nowhere;
    show(summary(tip, say), done, done);
    app.canvas?.setDirty(true, true);
  });
  const ask = async () => {
    const name = value(node, "lora_name", ""); // there may be none to choose
    if (name === asked) return;
    asked = name;
    tip = null;
    show(name ? say.reading : say.unchosen);
    if (!name) return;
    let answer;
    try {
      answer = await (await api.fetchApi(`/tcd/lora?name=${encodeURIComponent(name)}`)).json();
    } catch {
      answer = { error: say.silent };
    }
    if (name !== asked) return;
    tip = answer.advice ?? null;
    const note = say.told(tip?.note ?? answer.error ?? "");
    if (tip) show(summary(tip, say), `${tip.title}: ${note}`, `${note}\n${tip.source}`);
    else show(note || say.unknown, answer.base ?? "", note);
  };
  const chosen = widget(node, "lora_name");
  if (chosen) chain(chosen, "callback", ask);
  chain(node, "onConfigure", ask);
  // A node from the menu is asked for at once; one from a file after its values are there.
  const first = setTimeout(ask, 0);
  chain(node, "onRemoved", () => {
    clearTimeout(first);
    asked = null;
  });
}
