// The curves: loss, gradient norm and learning rate over the same steps.

import Plotly, { type PlotElement } from "plotly.js-basic-dist-min";
import { inWords } from "./legend.js";
import { drawnMarks, marksOf } from "./marks.js";
import { onThemeChange, readTheme } from "./theme.js";
import { tracesOf } from "./traces.js";
import type { Watched } from "./watched.js";

// What comes at once is drawn at once.
const SOON = 20;
// Between two drawings: often enough to look alive, and for long histories, whose drawings take long and
// change little, seldom enough to leave the processor alone. (The newest numbers are shown at once.)
const GAP = 120;
const GAP_OF_A_STEP = 0.07;
const LONGEST_GAP = 1_400;
const MARGIN = { l: 62, r: 12, t: 6, b: 34 };
const CONFIG = { displaylogo: false, displayModeBar: false, responsive: false };

interface Clicked {
  points: { x: number; customdata?: number }[];
}

export class Chart {
  readonly element = document.createElement("div");
  smoothing = 0.9;
  logarithmic = false;
  /** Curves to draw; the first is the main one. */
  runs: readonly Watched[] = [];
  private drawn = "";
  private settings = 0;
  private range: [number, number] | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private nextAt = 0;
  private visible = true;
  private plot: PlotElement | null = null;
  private disposed = false;
  private readonly endings: (() => void)[] = [];

  constructor(private readonly onPick: (step: number, branch: number) => void) {
    this.element.className = "jt-chart";
    this.element.setAttribute("role", "img");
    this.name();
    const seen = new IntersectionObserver((entries) => {
      this.visible = entries.some((entry) => entry.isIntersecting);
      this.schedule();
    });
    seen.observe(this.element);
    const size = new ResizeObserver(() => this.restyle());
    size.observe(this.element);
    const shown = () => this.schedule();
    document.addEventListener("visibilitychange", shown);
    this.endings.push(
      () => seen.disconnect(),
      () => size.disconnect(),
      () => document.removeEventListener("visibilitychange", shown),
      onThemeChange(() => this.restyle()),
    );
  }

  /** Draw anew soon, even if the runs are as they were. */
  restyle(): void {
    this.settings += 1;
    this.schedule();
  }

  /** Show all steps again. */
  unzoom(): void {
    this.range = null;
    this.restyle();
  }

  schedule(): void {
    if (this.timer !== undefined || this.disposed) return;
    if (!this.visible || document.hidden) return;
    const draw = () => {
      this.timer = undefined;
      void this.draw();
    };
    this.timer = setTimeout(draw, Math.max(SOON, this.nextAt - performance.now()));
  }

  dispose(): void {
    this.disposed = true;
    clearTimeout(this.timer);
    for (const end of this.endings) end();
    this.plot?.removeAllListeners();
    Plotly.purge(this.element);
    this.element.remove();
  }

  private name(): void {
    const name = inWords(this.runs);
    if (this.element.getAttribute("aria-label") !== name) {
      this.element.setAttribute("aria-label", name);
    }
  }

  private async draw(): Promise<void> {
    this.name();
    const width = this.element.clientWidth;
    const state = [this.settings, ...this.runs.map((run) => `${run.id} ${run.version}`)].join();
    if (width === 0 || state === this.drawn) return;
    this.drawn = state;
    const theme = readTheme(this.element);
    const view = {
      range: this.range,
      width: Math.max(100, width - MARGIN.l - MARGIN.r),
      smoothing: this.smoothing,
    };
    const { length } = theme.runs;
    const each = this.runs.map((run, index) =>
      tracesOf(run, theme.runs[index % length]!, index === 0, view, theme),
    );
    const traces = each.reverse().flat(); // the main run on top of the others
    const plot = await Plotly.react(this.element, traces, this.layout(width, theme), CONFIG);
    const steps = this.runs.reduce((sum, run) => sum + run.series.length, 0);
    const gap = Math.min(Math.max(GAP, GAP_OF_A_STEP * steps), LONGEST_GAP);
    this.nextAt = performance.now() + gap;
    if (this.disposed) Plotly.purge(this.element);
    else if (!this.plot) this.listen(plot);
  }

  private layout(width: number, theme: ReturnType<typeof readTheme>): object {
    const main = this.runs[0];
    const [first, last] = this.range ?? [main?.series.at("step", 0), main?.series.at("step", -1)];
    const room = ((last || 1) - (first || 0)) * (18 / width);
    const y = (title: string, from: number, to: number, more: object = {}) => ({
      title: { text: title, font: { size: 11 } },
      domain: [from, to],
      gridcolor: theme.grid,
      zeroline: false,
      automargin: false,
      nticks: 5,
      ...more,
    });
    return {
      width,
      height: width < 700 ? 420 : 480,
      margin: MARGIN,
      showlegend: false,
      hovermode: "x",
      hoverdistance: -1,
      dragmode: "zoom",
      uirevision: "kept",
      font: { color: theme.text, size: 11 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: {
        title: { text: "optimizer step", standoff: 4 },
        gridcolor: theme.grid,
        zeroline: false,
        anchor: "y3",
        // Few steps: no ticks between them.
        ...((last || 0) - (first || 0) < 10 ? { dtick: 1 } : {}),
        ...(this.range ? { range: this.range } : { autorange: true }),
      },
      yaxis: y("loss", 0.47, 1, { type: this.logarithmic ? "log" : "linear" }),
      yaxis2: y("gradient norm", 0.235, 0.42, { rangemode: "tozero" }),
      yaxis3: y("learning rate", 0, 0.185, { exponentformat: "e", rangemode: "tozero" }),
      ...drawnMarks(marksOf(main?.events ?? []), theme, room),
    };
  }

  private listen(plot: PlotElement): void {
    this.plot = plot;
    plot.on("plotly_click", (event: Clicked) => {
      const point = event.points.find(({ customdata }) => customdata !== undefined);
      if (point) this.onPick(point.x, point.customdata!);
    });
    plot.on("plotly_relayout", () => {
      const axis = plot.layout?.xaxis;
      const range = axis?.autorange ? null : (axis?.range ?? null);
      if (String(range) === String(this.range)) return;
      this.range = range === null ? null : [range[0], range[1]];
      this.restyle();
    });
  }
}
