// The learning rate finder: begins a sweep over a copy of the run, and shows what it finds.

import { h, say } from "./dom.js";
import { disable } from "./fields.js";
import { FinderPlot } from "./finder_plot.js";
import {
  progress,
  type Sweep,
  suggested,
  told,
  whyNoCancel,
  whyNoSweep,
  whyUnused,
} from "./sweep.js";
import type { Tab } from "./tabs.js";
import type { Transport } from "./transport.js";
import type { Run } from "./types.js";
import type { Watched } from "./watched.js";
import { short } from "./words.js";

const POLL = 400;
const KEY = "faint: each step's loss, less what is its batch's own · bold: smoothed";
const SPARED = "The sweep is made on a copy: the run itself is untouched.";

export interface FinderActions {
  transport(): Transport;
  /** Changes the controls of the run that is shown. */
  change(fields: Record<string, unknown>): Promise<void>;
}

export class Finder implements Tab {
  readonly name = "LR finder";
  readonly element: HTMLElement;
  private readonly from = number("Lowest learning rate", "1e-6");
  private readonly to = number("Highest learning rate", "1");
  private readonly steps = number("Steps of the sweep, 10 to 200", "60");
  private readonly batches = number("Batches to go through, 1 to 32", "8");
  private readonly begin = h("button", { type: "button", click: () => this.start() }, "Sweep");
  private readonly cancel = h("button", { type: "button", click: () => this.stop() }, "Cancel");
  private readonly form: HTMLFieldSetElement;
  private readonly bar = h("progress", { "aria-label": "Progress of the sweep", max: 1 });
  private readonly stage = h("span");
  private readonly running = h("div", { class: "jt-sweeping" }, this.bar, this.stage, this.cancel);
  private readonly why = h("p", { class: "jt-why", "aria-live": "polite" });
  private readonly result = h("p", { class: "jt-note", role: "status" });
  private readonly fault = h("p", { class: "jt-fault", role: "alert" });
  private readonly use = h("button", { type: "button", class: "jt-use", click: () => this.take() });
  private readonly used = h("span", { class: "jt-why", "aria-live": "polite" });
  private readonly useRow = h("div", { class: "jt-use-row" }, this.use, this.used);
  private readonly plot = new FinderPlot();
  private readonly key = h("span", { class: "jt-key" }, KEY);
  private watched: Watched | null = null;
  private live = false;
  private sweep: Sweep | null = null;
  private known = -1; // the newest event of a sweep that was seen
  private timer: ReturnType<typeof setTimeout> | undefined;
  private disposed = false;

  constructor(private readonly actions: FinderActions) {
    this.form = h(
      "fieldset",
      { class: "jt-controls jt-flow" },
      h("legend", {}, "Sweep over a copy of the run"),
      h("label", {}, "LR from", this.from),
      h("label", {}, "to", this.to),
      h("label", {}, "in", this.steps, "steps"),
      h("label", {}, "over its last", this.batches, "batches"),
      this.begin,
    );
    this.element = h(
      "div",
      { class: "jt-finder" },
      this.form,
      this.why,
      this.running,
      this.fault,
      this.plot.element,
      this.key,
      this.result,
      this.useRow,
      h("p", { class: "jt-why" }, SPARED),
    );
    for (const input of [this.from, this.to, this.steps, this.batches]) {
      input.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !this.begin.disabled) this.start();
      });
    }
    this.render();
  }

  show(watched: Watched | null, live: boolean): void {
    const other = watched?.id !== this.watched?.id;
    const back = live && !this.live;
    this.watched = watched;
    this.live = live;
    if (other) {
      this.sweep = null;
      this.known = -1;
      say(this.fault, "");
    }
    const events = (watched?.events ?? []).filter(({ kind }) => kind.startsWith("lr_find"));
    const newest = events[events.length - 1]?.id ?? 0;
    if (watched && live && (back || newest !== this.known)) {
      this.known = newest;
      void this.look();
    } else if (this.moves) {
      this.lookSoon();
    }
    this.render();
  }

  dispose(): void {
    this.disposed = true;
    clearTimeout(this.timer);
    this.plot.dispose();
  }

  /** Whether the next look may find something else. */
  private get moves(): boolean {
    return this.sweep === null || this.sweep.status === "running";
  }

  private async look(): Promise<void> {
    await this.ask((path) => this.actions.transport().get<Sweep>(path));
  }

  /** Only while the tab is open: `show` begins it again. */
  private lookSoon(): void {
    if (this.timer !== undefined || this.disposed) return;
    this.timer = setTimeout(() => {
      this.timer = undefined;
      if (!this.element.hidden && this.live) void this.look();
    }, POLL);
  }

  private start(): void {
    const wish = {
      min: Number(this.from.value),
      max: Number(this.to.value),
      steps: Number(this.steps.value),
      batches: Number(this.batches.value),
    };
    void this.ask((path) => this.actions.transport().post<Sweep>(path, wish));
  }

  private stop(): void {
    void this.ask((path) => this.actions.transport().delete<Sweep>(path));
  }

  private take(): void {
    const rate = suggested(this.sweep);
    if (rate !== null) void this.actions.change({ learning_rate: rate });
  }

  /** Ask something of the run's sweep; what is answered is shown. */
  private async ask(question: (path: string) => Promise<Sweep>): Promise<void> {
    const { watched } = this;
    if (!watched || this.disposed) return;
    let failed = "";
    try {
      const sweep = await question(`${watched.path}/lr_find`);
      if (watched !== this.watched || this.disposed) return;
      this.sweep = sweep;
    } catch (error) {
      if (watched !== this.watched || this.disposed) return;
      failed = error instanceof Error ? error.message : String(error);
    }
    say(this.fault, failed);
    if (this.moves) this.lookSoon();
    this.render();
  }

  private render(): void {
    const { sweep } = this;
    const run = this.watched?.run ?? null;
    const why = whyNoSweep(run, this.live, sweep);
    disable(this.form, why);
    const running = sweep?.status === "running";
    say(this.why, (running ? whyNoCancel(this.live, sweep) : why) ?? "");
    this.running.hidden = !running;
    const text = sweep ? told(sweep) : "";
    if (sweep && running) this.renderProgress(sweep, text);
    say(this.result, running ? "" : text);
    this.plot.show(sweep, text);
    this.key.hidden = this.plot.element.hidden;
    this.renderUse(run);
  }

  private renderProgress(sweep: Sweep, text: string): void {
    const done = progress(sweep);
    if (done === null) this.bar.removeAttribute("value");
    else this.bar.value = done;
    say(this.stage, text);
    disable(this.cancel, whyNoCancel(this.live, sweep));
  }

  private renderUse(run: Run | null): void {
    const rate = suggested(this.sweep);
    this.useRow.hidden = rate === null;
    say(this.use, `Use this LR: ${short(rate)}`);
    const why = whyUnused(run, this.live, this.sweep);
    disable(this.use, why);
    say(this.used, why ?? "in the place of what the client asks, from the run's next step on");
  }
}

function number(name: string, value: string): HTMLInputElement {
  return h("input", {
    type: "text",
    inputmode: "decimal",
    class: "jt-number",
    "aria-label": name,
    title: name,
    value,
  });
}
