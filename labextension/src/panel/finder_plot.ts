// A sweep over learning rates, drawn: what it found, and what is suggested.

import Plotly from "plotly.js-basic-dist-min";
import type { Sweep, SweepPoint } from "./sweep.js";
import { lossWindow, sweepMarks, sweepTraces } from "./sweep_traces.js";
import { onThemeChange, readTheme, type Theme } from "./theme.js";

const HEIGHT = 260;
const CONFIG = { displaylogo: false, displayModeBar: false, responsive: false };

export class FinderPlot {
  readonly element = document.createElement("div");
  private sweep: Sweep | null = null;
  private drawn = "";
  private looks = 0;
  private disposed = false;
  private readonly endings: (() => void)[] = [];

  constructor() {
    this.element.className = "jt-sweep";
    this.element.setAttribute("role", "img");
    const size = new ResizeObserver(() => this.restyle());
    size.observe(this.element);
    this.endings.push(
      () => size.disconnect(),
      onThemeChange(() => this.restyle()),
    );
  }

  show(sweep: Sweep | null, text: string): void {
    this.sweep = sweep;
    this.element.hidden = (sweep?.points?.length ?? 0) === 0;
    this.element.setAttribute("aria-label", `Loss over the learning rate. ${text}`);
    void this.draw();
  }

  dispose(): void {
    this.disposed = true;
    for (const end of this.endings) end();
    Plotly.purge(this.element);
  }

  private restyle(): void {
    this.looks += 1;
    void this.draw();
  }

  private async draw(): Promise<void> {
    const points = this.sweep?.points ?? [];
    const width = this.element.clientWidth;
    const state = [this.looks, width, this.sweep?.status, points.length, points[0]?.loss].join();
    if (this.disposed || width === 0 || points.length === 0 || state === this.drawn) return;
    this.drawn = state;
    const theme = readTheme(this.element);
    const layout = this.layout(width, points, theme);
    await Plotly.react(this.element, sweepTraces(points, theme), layout, CONFIG);
    if (this.disposed) Plotly.purge(this.element);
  }

  private layout(width: number, points: SweepPoint[], theme: Theme): object {
    const sweep = this.sweep!;
    const { min, max } = sweep.settings!;
    const axis = { gridcolor: theme.grid, zeroline: false };
    const shown = lossWindow(points);
    return {
      width,
      height: HEIGHT,
      margin: { l: 62, r: 12, t: 8, b: 38 },
      showlegend: false,
      hovermode: "x",
      dragmode: false,
      font: { color: theme.text, size: 11 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: {
        ...axis,
        title: { text: "learning rate", standoff: 4 },
        type: "log",
        range: [Math.log10(min), Math.log10(max)],
        exponentformat: "e",
        dtick: 1,
      },
      yaxis: {
        ...axis,
        title: { text: "loss, batches levelled", font: { size: 11 }, standoff: 4 },
        ...(shown ? { range: shown } : { autorange: true }),
      },
      ...sweepMarks(sweep, theme),
    };
  }
}
