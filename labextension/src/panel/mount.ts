// The panel: watches a run and steers it. Written once, mounted wherever there is an element.

import { RunActions } from "./actions.js";
import { Chart } from "./chart.js";
import { h, say } from "./dom.js";
import { acquireFeed, Feed, releaseFeed } from "./feed.js";
import { Finder } from "./finder.js";
import { followed } from "./following.js";
import { Happenings } from "./happenings.js";
import { Legend } from "./legend.js";
import { Notices } from "./notices.js";
import { type Choice, Picker } from "./picker.js";
import { ProgressBar } from "./progress.js";
import { Readouts } from "./readouts.js";
import { Samples } from "./samples.js";
import { Steering } from "./steering.js";
import { STYLE } from "./style.js";
import { Tabs } from "./tabs.js";
import { Tokens } from "./tokens.js";
import type { Transport } from "./transport.js";
import type { Run } from "./types.js";
import { viewOptions } from "./view_options.js";
import type { Watched } from "./watched.js";

export interface Options {
  /** Jupyter's base URL, with a slash at its end. */
  baseUrl: string;
  /** A run's id; null follows whichever starts, the kernel's own first. */
  run?: string | null;
  /** Runs to compare with it. */
  compared?: readonly string[];
  /** The id of the notebook's kernel. */
  kernel?: string | null;
  /** Another way to the server than the page's own. */
  transport?: Transport;
  /** Whether JupyterLab's shortcuts work here, too: in a notebook they would run its cells. */
  shortcuts?: boolean;
  /** Called with every change of what is shown: the choice, and the run itself. */
  onChange?: (choice: Choice, run: Run | null) => void;
}

const SUPPRESS = "data-lm-suppress-shortcuts";

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
  private readonly banner = h("p", { class: "jt-banner", role: "status" });
  private readonly progress = new ProgressBar();
  private readonly kernel: string | null;
  private readonly picker: Picker;
  private readonly legend = new Legend((id) => {
    const compared = this.choice.compared.filter((other) => other !== id);
    this.choose({ ...this.choice, compared });
  });
  private readonly readouts = new Readouts();
  private readonly notices = new Notices();
  private readonly tabs: Tabs;
  private readonly chart = new Chart((step, branch) => this.pick(step, branch));
  private readonly actions: RunActions;
  private readonly steering: Steering;
  private choice: Choice;
  private watched: Watched[] = [];
  private disposed = false;

  constructor(
    element: HTMLElement,
    private readonly options: Options,
  ) {
    this.choice = { run: options.run || null, compared: options.compared ?? [] };
    const { transport, baseUrl } = options;
    this.kernel = options.kernel || null;
    this.picker = new Picker(this.kernel, (choice) => this.choose(choice));
    this.feed = transport ? new Feed(transport) : acquireFeed(baseUrl);
    const root = () => this.root;
    this.actions = new RunActions(this.feed.transport, () => this.main, this.notices, root);
    this.steering = new Steering(this.actions);
    this.tabs = new Tabs([
      new Happenings(),
      new Tokens(),
      new Samples(() => this.feed.transport),
      new Finder({ transport: () => this.feed.transport, change: this.actions.change }),
    ]);
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
        [SUPPRESS]: !this.options.shortcuts,
        keydown: (event) => this.options.shortcuts || event.stopPropagation(),
        focusin: ({ target }) => this.keepArrows(target as Element),
      },
      h("style", {}, STYLE),
      h("div", { class: "jt-head" }, this.picker.element, this.banner, badges),
      this.problem,
      this.progress.element,
      this.readouts.element,
      this.legend.element,
      this.chart.element,
      viewOptions(this.chart),
      this.steering.element,
      this.notices.element,
      this.tabs.element,
    );
    return root;
  }

  /** Notebook 7 takes arrow keys even from a slider, unless it is marked itself. */
  private keepArrows(target: Element): void {
    const slider = target instanceof HTMLInputElement && target.type === "range";
    if (slider || !this.options.shortcuts) target.setAttribute(SUPPRESS, "true");
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
    this.state.dataset.kind = run?.state === "paused" ? "warn" : "";
    this.picker.show(
      this.feed.runs,
      this.choice,
      this.chart.runs.map(({ id }) => id),
    );
    say(this.banner, state(run, this.feed));
    this.banner.title = this.banner.textContent ?? "";
    this.progress.show(this.feed.tasks.values(), run?.run_id ?? null);
    this.readouts.show(this.main, this.feed.status);
    this.legend.show(this.watched);
    this.tabs.show(this.main, connection === "live");
    this.steering.show(run, connection === "live");
    this.chart.schedule();
    this.options.onChange?.(this.choice, run);
  }

  /** Watch what is chosen, and no more. */
  private watch(): void {
    const main = this.choice.run ?? followed(this.feed.runs, this.kernel)?.run_id;
    const wanted = main === undefined ? [] : [main, ...this.choice.compared];
    const ids = [...new Set(wanted)];
    if (ids.join() === this.watched.map(({ id }) => id).join()) return;
    const before = this.watched;
    this.watched = ids.map((id) => this.feed.watch(id));
    for (const watched of before) this.feed.release(watched);
    this.chart.runs = this.watched;
  }

  private pick(step: number, branch: number): void {
    this.steering.pick(step, branch);
    this.actions.ask(step, branch);
  }
}

const NO_RUN = "There is no run yet: as soon as one starts, it is shown here.";

/** What a person should know of a run before anything else; empty if there is nothing. */
function state(run: Run | null, feed: Feed): string {
  if (run === null) return feed.connection === "live" && feed.runs.length === 0 ? NO_RUN : "";
  if (run.ended !== null) return `Ended: ${run.ended}`;
  if (run.controls.paused) return `Paused: ${run.controls.paused_because ?? "by a person"}.`;
  return "";
}
