// How the curves are drawn: smoothing, the axis of the loss, and which steps.

import type { Chart } from "./chart.js";
import { h, say } from "./dom.js";
import { button } from "./fields.js";

const KEY = "bold: smoothed · × clipped · dotted: asked for, or a branch that was left";

/** Controls of a chart. */
export function viewOptions(chart: Chart): HTMLElement {
  const percent = h("output", { class: "jt-hint" });
  const smoothing = h("input", {
    type: "range",
    min: 0,
    max: 0.99,
    step: 0.01,
    value: chart.smoothing,
    class: "jt-slider",
    input: () => {
      chart.smoothing = Number(smoothing.value);
      say(percent, smoothing.value);
      chart.restyle();
    },
  });
  say(percent, smoothing.value);
  const log = h("input", {
    type: "checkbox",
    change: () => {
      chart.logarithmic = log.checked;
      chart.restyle();
    },
  });
  return h(
    "div",
    { class: "jt-options" },
    h("label", {}, "Smoothing", smoothing, percent),
    h("label", {}, log, "log loss"),
    button("All steps", () => chart.unzoom(), "Undo zooming"),
    h("span", { class: "jt-key" }, KEY),
  );
}
