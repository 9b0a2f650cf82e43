// The only file that the page imports by itself: which nodes get what. Without it every graph runs the same.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addDrawing } from "./drawing.mjs";
import { addPreset } from "./preset.mjs";
import { addTraining, EVENT } from "./training.mjs";

const SHOWN = {
  TCD_KSampler: (node) => addDrawing(node, app),
  TCD_Sampler: (node) => addDrawing(node, app),
  TCD_Settings: (node) => addDrawing(node, app),
  TCD_LoraLoader: (node) => addPreset(node, app, api),
  TCD_Distill: (node) => addTraining(node, app, api),
};

// The page calls a message of a kind that nobody listens to an error, also where no panel is in the graph.
api.addEventListener(EVENT, () => {});

app.registerExtension({
  name: "trajectory-consistency.TCD",
  nodeCreated(node) {
    SHOWN[node.comfyClass]?.(node);
  },
});
