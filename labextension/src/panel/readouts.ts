// The newest numbers of a run.

import { h, say } from "./dom.js";
import type { Watched } from "./watched.js";
import { bytes, duration, remaining, short, throughput } from "./words.js";

const NAMES = [
  "Step",
  "Loss",
  "Gradient norm",
  "LR",
  "Tokens/s",
  "Elapsed",
  "ETA",
  "Memory",
] as const;
type Name = (typeof NAMES)[number];

export class Readouts {
  readonly element: HTMLElement;
  private readonly values = new Map<Name, HTMLElement>();
  private readonly cells = new Map<Name, HTMLElement>();

  constructor() {
    for (const name of NAMES) {
      const value = h("div", { class: "jt-value" }, "–");
      this.values.set(name, value);
      const called = h("div", { class: "jt-name" }, name);
      this.cells.set(name, h("div", { role: "listitem" }, called, value));
    }
    this.element = h(
      "div",
      { class: "jt-readouts", role: "list", "aria-label": "Newest numbers" },
      ...this.cells.values(),
    );
  }

  show(watched: Watched | null): void {
    const run = watched?.run;
    const series = watched?.series;
    const last = run?.last_step;
    const put = (name: Name, text: string) => say(this.values.get(name)!, text);
    put("Step", last ? String(last.step) : "–");
    put("Loss", short(last?.loss_mean));
    put("Gradient norm", short(last?.grad_norm));
    put("LR", short(last?.learning_rate));
    put("Tokens/s", series ? short(Math.round(throughput(series))) : "–");
    put("Elapsed", run && last ? duration(last.time - run.created_at) : "–");
    put("Memory", bytes(last?.memory_bytes ?? Number.NaN));
    const left = run && series ? remaining(run, series) : Number.NaN;
    put("ETA", duration(left));
    this.cells.get("ETA")!.hidden = !Number.isFinite(left);
  }
}
