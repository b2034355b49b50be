// A sweep over learning rates as Plotly's traces and marks.

import { type Sweep, type SweepPoint, suggested } from "./sweep.js";
import type { Theme } from "./theme.js";
import { short } from "./words.js";

/** The losses over the learning rate: as they were, faint, and smoothed. */
export function sweepTraces(points: readonly SweepPoint[], theme: Theme): object[] {
  const color = theme.runs[0]!;
  const curve = (key: "adjusted" | "smoothed", more: object) => ({
    type: "scatter",
    mode: "lines",
    x: points.map((point) => point.learning_rate),
    y: points.map((point) => point[key]),
    ...more,
  });
  return [
    curve("adjusted", { line: { color, width: 1 }, opacity: 0.35, hoverinfo: "skip" }),
    curve("smoothed", {
      line: { color, width: 2.4 },
      hovertemplate: "%{x:.2~g}: %{y:.4g}<extra></extra>",
    }),
  ];
}

/** The span of losses to show: one that diverges leaves it, and would flatten the rest. */
export function lossWindow(points: readonly SweepPoint[]): [number, number] | null {
  const losses = points.flatMap(({ smoothed }) => (smoothed === null ? [] : [smoothed]));
  if (losses.length === 0) return null;
  const low = Math.min(...losses);
  const start = losses[0]!;
  const room = Math.max(start - low, 0.02 * Math.abs(start), 1e-3);
  return [low - 0.3 * room, start + room];
}

/** Vertical lines where a sweep suggests something, with their names. */
export function sweepMarks(sweep: Sweep, theme: Theme) {
  const { suggestion } = sweep;
  const rate = suggested(sweep);
  if (!suggestion || rate === null) return { shapes: [], annotations: [] };
  const marks = [
    { x: suggestion.lowest, text: "lowest", colour: theme.muted, dash: "dot", width: 1 },
    { x: rate, text: `suggested: ${short(rate)}`, colour: theme.runs[1]!, dash: "solid", width: 2 },
  ];
  return {
    shapes: marks.map(({ x, colour, dash, width }) => ({
      type: "line",
      x0: x,
      x1: x,
      yref: "paper",
      y0: 0,
      y1: 1,
      line: { color: colour, dash, width },
    })),
    annotations: marks.map(({ x, text }, index) => ({
      // On a logarithmic axis the place of a text is its exponent.
      x: Math.log10(x),
      yref: "paper",
      // The two may be near one another.
      y: index === 0 ? 0.02 : 1,
      yanchor: index === 0 ? "bottom" : "top",
      xanchor: index === 0 ? "left" : "right",
      showarrow: false,
      text,
    })),
  };
}
