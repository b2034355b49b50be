// Runs as Plotly's traces: what is drawn of them, and how.

import { lineage } from "./branches.js";
import { Columns } from "./decimate.js";
import { nameOf } from "./picker.js";
import type { Column, Series } from "./series.js";
import { smooth } from "./smooth.js";
import type { Theme } from "./theme.js";
import type { Watched } from "./watched.js";

export interface View {
  /** The window on the steps; null is all of them. */
  range: [number, number] | null;
  /** Of the plot, in pixels. */
  width: number;
  smoothing: number;
}

// Steps before a branch that its smoothed beginning still depends on.
const WARM_UP = 500;

type Trace = Record<string, unknown>;
const SILENT = { hoverinfo: "skip" };

/** One run; of the main one there is more to see than of those that are compared with it. */
export function tracesOf(
  watched: Watched,
  colour: string,
  main: boolean,
  view: View,
  theme: Theme,
): Trace[] {
  const { series } = watched;
  const { live, left } = series.split(watched.upto);
  const curve = new Curve(series, live, view);
  const line = (width: number, more: object = {}) => ({ color: colour, width, ...more });
  const spoken = (name: string) => (main ? told(name) : SILENT);
  const made: Trace[] = [];
  for (const [branch, own] of left) {
    const path = series.split(lineage(watched.run?.branches ?? [], branch)).live;
    // It goes on where it left the run's line, and is smoothed as if it were the line.
    const begin = Math.max(0, path.indexOf(own[0]!) - 1);
    const old = new Curve(series, path.slice(Math.max(0, begin - WARM_UP)), view);
    const first = series.at("step", path[begin]!);
    made.push({
      ...old.of("loss", view.smoothing, undefined, first),
      ...spoken("left branch"),
      line: line(1.2, { dash: "dot" }),
      opacity: 0.45,
    });
  }
  made.push({ ...curve.of("loss"), ...SILENT, line: line(1), opacity: 0.3 });
  const loss = main ? told("loss") : { ...told(nameOf(watched)), customdata: undefined };
  made.push({ ...curve.of("loss", view.smoothing), ...loss, line: line(main ? 2.4 : 1.8) });
  const norm = curve.of("gradNorm");
  made.push({ ...norm, ...spoken("gradient norm"), yaxis: "y2", line: line(1.3) });
  if (main) {
    const clip = { ...curve.of("clip", 0, (value) => (value > 0 ? value : Number.NaN)), ...SILENT };
    made.push({ ...clip, yaxis: "y2", line: { color: theme.warn, width: 1.2, dash: "dash" } });
    made.push({ ...curve.clipped(norm.kept), ...clippedMarks(theme) });
    const asked = { ...curve.of("asked"), ...spoken("asked"), yaxis: "y3" };
    made.push({ ...asked, line: { color: theme.muted, width: 1.2, dash: "dot" } });
  }
  made.push({
    ...curve.of("used"),
    ...spoken(main ? "used" : "learning rate"),
    yaxis: "y3",
    line: line(1.8, { shape: "hv" }),
  });
  return made.map(({ kept: _, ...trace }) => ({ type: "scatter", mode: "lines", ...trace }));
}

/** What is said of a trace where the mouse is. */
const told = (name: string) => ({
  name,
  hovertemplate: "%{y:.4g}<extra>%{fullData.name}</extra>",
});

const clippedMarks = (theme: Theme) => ({
  ...SILENT,
  yaxis: "y2",
  mode: "markers",
  // Each is an element of the page.
  marker: { color: theme.warn, size: 5, symbol: "x-thin-open", maxdisplayed: 120 },
});

// A line of two pixels shows no more than that.
const PIXELS = 2;

/** Columns over some of a run's steps, thinned out to what the view can show. */
class Curve {
  private readonly steps: Float64Array;
  private readonly columns: Columns;

  constructor(
    private readonly series: Series,
    private readonly rows: ArrayLike<number>,
    view: View,
  ) {
    this.steps = this.all("step");
    const [from, to] = view.range ?? extent(this.steps);
    this.columns = new Columns(this.steps, from, to, view.width / PIXELS);
  }

  /** The points of a column from a step on. */
  of(
    column: Column,
    smoothing = 0,
    map?: (value: number) => number,
    first = Number.NEGATIVE_INFINITY,
  ) {
    let values = this.all(column);
    if (map) values = values.map(map);
    if (smoothing > 0) values = smooth(values, smoothing);
    const kept = this.columns.keep(values).filter((index) => this.steps[index]! >= first);
    return this.points(kept, (index) => values[index]!);
  }

  /** A column at all of the steps. */
  private all(column: Column): Float64Array {
    const whole = this.series.column(column);
    const { length } = this.rows;
    if (length === whole.length) return whole;
    const own = new Float64Array(length);
    for (let i = 0; i < length; i++) own[i] = whole[this.rows[i]!]!;
    return own;
  }

  /** Those of the steps that are drawn whose gradients were clipped. */
  clipped(drawn: number[]) {
    const [norm, clip] = [this.series.column("gradNorm"), this.series.column("clip")];
    const kept = drawn.filter((index) => {
      const row = this.rows[index]!;
      return clip[row]! > 0 && norm[row]! > clip[row]!;
    });
    return this.points(kept, (index) => norm[this.rows[index]!]!);
  }

  private points(kept: number[], y: (index: number) => number) {
    const branch = this.series.column("branch");
    return {
      kept,
      x: kept.map((index) => this.steps[index]!),
      y: kept.map(y),
      customdata: kept.map((index) => branch[this.rows[index]!]!),
    };
  }
}

function extent(values: Float64Array): [number, number] {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low < high ? [low, high] : [low - 1, low + 1];
}
