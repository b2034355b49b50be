// The panel: watches a run and steers it. Written once, mounted wherever there is an element.

import { Chart } from "./chart.js";
import { confirm } from "./confirm.js";
import { h, say } from "./dom.js";
import { acquireFeed, Feed, releaseFeed } from "./feed.js";
import { Happenings } from "./happenings.js";
import { Notices } from "./notices.js";
import { type Choice, Picker } from "./picker.js";
import { Readouts } from "./readouts.js";
import { Steering } from "./steering.js";
import { STYLE } from "./style.js";
import { Tabs } from "./tabs.js";
import type { Transport } from "./transport.js";
import type { Run } from "./types.js";
import type { Watched } from "./watched.js";

export interface Options {
  /** Jupyter's base URL, with a slash at its end. */
  baseUrl: string;
  /** A run's id; null follows whichever started last. */
  run?: string | null;
  /** Runs to compare with it. */
  compared?: readonly string[];
  /** Another way to the server than the page's own. */
  transport?: Transport;
  /** Whether JupyterLab's shortcuts work here, too: in a notebook they would run its cells. */
  shortcuts?: boolean;
  /** Called with every change of what is shown: the choice, and the run itself. */
  onChange?: (choice: Choice, run: Run | null) => void;
}

export interface Panel {
  select(run: string | null): void;
  dispose(): void;
}

export function mount(element: HTMLElement, options: Options): Panel {
  return new View(element, options);
}

class View implements Panel {
  private readonly feed: Feed;
  private readonly unsubscribe: () => void;
  private readonly root: HTMLElement;
  private readonly connection = h("span", { class: "jt-badge", role: "status" });
  private readonly state = h("span", { class: "jt-badge" });
  private readonly problem = h("p", { class: "jt-problem", role: "alert" });
  private readonly picker = new Picker((choice) => this.choose(choice));
  private readonly readouts = new Readouts();
  private readonly notices = new Notices();
  private readonly tabs = new Tabs([new Happenings()]);
  private readonly chart = new Chart((step, branch) => this.pick(step, branch));
  private readonly steering = new Steering({
    change: (fields) => this.change(fields),
    rewind: (step, branch) => this.ask(step, branch, ["Rewind"]),
    fork: (step, branch) => this.ask(step, branch, ["Fork"]),
  });
  private choice: Choice;
  private watched: Watched[] = [];
  private disposed = false;

  constructor(
    element: HTMLElement,
    private readonly options: Options,
  ) {
    this.choice = { run: options.run || null, compared: options.compared ?? [] };
    const { transport, baseUrl } = options;
    this.feed = transport ? new Feed(transport) : acquireFeed(baseUrl);
    this.unsubscribe = this.feed.subscribe(() => this.update());
    this.root = this.layout();
    element.append(this.root);
    this.update();
  }

  select(run: string | null): void {
    this.choose({ ...this.choice, run });
  }

  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.unsubscribe();
    for (const watched of this.watched) this.feed.release(watched);
    this.watched = [];
    this.chart.runs = [];
    this.chart.dispose();
    this.tabs.dispose();
    if (this.options.transport) this.feed.dispose();
    else releaseFeed(this.options.baseUrl, this.feed);
    this.root.remove();
  }

  private get main(): Watched | null {
    return this.watched[0] ?? null;
  }

  private layout(): HTMLElement {
    const badges = h("div", { class: "jt-group" }, this.state, this.connection);
    const root = h(
      "section",
      {
        class: "jt-panel",
        "aria-label": "Tinker run",
        // JupyterLab's shortcuts are not meant for what is typed here.
        "data-lm-suppress-shortcuts": !this.options.shortcuts,
        keydown: (event) => this.options.shortcuts || event.stopPropagation(),
      },
      h("style", {}, STYLE),
      h("div", { class: "jt-head" }, this.picker.element, badges),
      this.problem,
      this.readouts.element,
      this.chart.element,
      this.settings(),
      this.steering.element,
      this.notices.element,
      this.tabs.element,
    );
    return root;
  }

  private settings(): HTMLElement {
    const smoothing = h("input", {
      type: "range",
      min: 0,
      max: 0.99,
      step: 0.01,
      value: this.chart.smoothing,
      class: "jt-slider",
      input: () => {
        this.chart.smoothing = Number(smoothing.value);
        this.chart.restyle();
      },
    });
    const log = h("input", {
      type: "checkbox",
      change: () => {
        this.chart.logarithmic = log.checked;
        this.chart.restyle();
      },
    });
    const all = h("button", { type: "button", click: () => this.chart.unzoom() }, "All steps");
    const key = "bold: smoothed · × clipped · dotted: asked for, or a branch that was left";
    return h(
      "div",
      { class: "jt-options" },
      h("label", {}, "Smoothing", smoothing),
      h("label", {}, log, "log loss"),
      all,
      h("span", { class: "jt-key" }, key),
    );
  }

  private choose(choice: Choice): void {
    this.choice = choice;
    this.notices.clear();
    this.update();
  }

  private update(): void {
    if (this.disposed) return;
    this.watch();
    const { connection, problem } = this.feed;
    const run = this.main?.run ?? null;
    say(this.connection, connection);
    this.connection.dataset.kind = connection === "live" ? "live" : "warn";
    say(this.problem, this.main?.problem ?? problem ?? "");
    const known = connection === "live" ? "" : "was ";
    say(this.state, run ? `${known}${run.state}` : "no run yet");
    this.state.title = run?.controls.paused_because ?? run?.ended ?? "";
    this.state.dataset.kind = run?.state === "paused" ? "warn" : "";
    this.picker.show(
      this.feed.runs,
      this.choice,
      this.chart.runs.map(({ id }) => id),
    );
    this.readouts.show(this.main);
    this.tabs.show(this.main, connection === "live");
    this.steering.show(run, connection === "live");
    this.chart.schedule();
    this.options.onChange?.(this.choice, run);
  }

  /** Watch what is chosen, and no more. */
  private watch(): void {
    const main = this.choice.run ?? this.feed.runs[0]?.run_id;
    const wanted = main === undefined ? [] : [main, ...this.choice.compared];
    const ids = [...new Set(wanted)];
    if (ids.join() === this.watched.map(({ id }) => id).join()) return;
    const before = this.watched;
    this.watched = ids.map((id) => this.feed.watch(id));
    for (const watched of before) this.feed.release(watched);
    this.chart.runs = this.watched;
  }

  private async change(fields: Record<string, unknown>): Promise<void> {
    await this.doing(async (watched) => {
      await this.feed.transport.post(`${watched.path}/controls`, fields);
    });
  }

  /** Do something to the main run, and say so; what the server refuses is said, too. */
  private async doing(work: (watched: Watched) => Promise<void>, about = ""): Promise<void> {
    const watched = this.main;
    if (!watched) return;
    this.notices.tell(about);
    try {
      await work(watched);
      await watched.refresh();
    } catch (error) {
      this.notices.fail(error instanceof Error ? error.message : String(error));
    }
  }

  private pick(step: number, branch: number): void {
    this.steering.pick(step, branch);
    this.ask(step, branch, ["Rewind", "Fork"]);
  }

  private ask(step: number, branch: number | null, offered: ("Rewind" | "Fork")[]): void {
    const offers = {
      Rewind: () => this.rewind(step, branch),
      Fork: () => this.fork(step, branch),
    };
    confirm(this.root, {
      title: `Step ${step}${branch ? ` of branch ${branch}` : ""}`,
      text: [
        ...(offered.includes("Rewind")
          ? ["Rewind: the run goes on from after this step; what came later is kept as a branch."]
          : []),
        ...(offered.includes("Fork")
          ? ["Fork: the run is left alone, and you get a path that another run can start from."]
          : []),
      ].join(" "),
      actions: Object.fromEntries(offered.map((name) => [name, offers[name]])),
    });
  }

  private rewind(step: number, branch: number | null): void {
    void this.doing(async (watched) => {
      await this.feed.transport.post(`${watched.path}/rewind`, place(step, branch));
      this.notices.tell(`The run is at step ${step}.`);
    }, `Going back to step ${step} …`);
  }

  private fork(step: number, branch: number | null): void {
    void this.doing(async (watched) => {
      const answer = await this.feed.transport.post<{ path: string }>(
        `${watched.path}/fork`,
        place(step, branch),
      );
      this.notices.tell(`Start a run from ${answer.path}`);
    }, `Making a checkpoint of step ${step} …`);
  }
}

const place = (step: number, branch: number | null) =>
  branch === null ? { step } : { step, branch };
