// The sidebar's runs: those that live, those that have ended, and which of them to compare.

import { h, say } from "../panel/dom.js";
import { MOST_RUNS } from "../panel/picker.js";
import type { Board } from "./board.js";
import { type RowActions, RunRow } from "./run_row.js";
import { Frame, type Section } from "./section.js";
import type { ListedRun } from "./types.js";

export interface RunsActions {
  open(run: string, compared: string[]): void;
  pause(run: string, paused: boolean): void;
}

class Group {
  readonly element: HTMLElement;
  private readonly heading = h("h3");
  private readonly list = h("ul");
  private order = "";

  constructor(private readonly name: string) {
    this.list.setAttribute("aria-label", `${name} runs`);
    this.element = h("div", { class: "jp-Tinker-group" }, this.heading, this.list);
  }

  show(rows: readonly RunRow[]): void {
    this.element.hidden = rows.length === 0;
    say(this.heading, `${this.name} (${rows.length})`);
    const order = rows.map(({ run }) => run).join();
    if (order === this.order) return;
    this.order = order;
    this.list.replaceChildren(...rows.map(({ element }) => element));
  }
}

export class RunsSection implements Section {
  readonly element: HTMLElement;
  private readonly frame: Frame;
  private readonly none = h(
    "p",
    { class: "jp-Tinker-hint" },
    "No run yet. One that any client of this server starts is shown here.",
  );
  private readonly live = new Group("Live");
  private readonly past = new Group("Past");
  private readonly rows = new Map<string, RunRow>();
  private readonly chosen = new Set<string>();
  /** Rows that somebody has seen: only of these the past is asked for. */
  private readonly seen = new Set<string>();
  private readonly observer = new IntersectionObserver((entries) => this.see(entries));
  private readonly compare = h("button", {
    type: "button",
    class: "jp-Tinker-button",
    click: () => this.openChosen(),
  });
  private readonly more: HTMLButtonElement;
  private readonly rowActions: RowActions;

  constructor(
    private readonly board: Board,
    private readonly actions: RunsActions,
  ) {
    this.rowActions = {
      open: (run) => actions.open(run, []),
      pause: (run, paused) => actions.pause(run, paused),
      choose: (run, chosen) => this.choose(run, chosen),
    };
    this.more = h(
      "button",
      { type: "button", class: "jp-Tinker-button", click: () => board.showMore() },
      "Older runs",
    );
    const tools = h("div", { class: "jp-Tinker-tools" }, this.compare);
    const shown = [tools, this.none, this.live.element, this.past.element, this.more];
    this.frame = new Frame("Runs", shown);
    this.element = this.frame.element;
  }

  show(): void {
    const { runs, total } = this.board;
    const living = runs.filter((run) => run.ended === null);
    this.frame.say(living.length ? `${living.length} live` : "");
    if (!this.frame.open) return;
    const known = new Set(runs.map(({ run_id }) => run_id));
    for (const id of this.rows.keys()) if (!known.has(id)) this.forget(id);
    this.live.show(living.map((run) => this.row(run)));
    this.past.show(runs.filter((run) => run.ended !== null).map((run) => this.row(run)));
    this.none.hidden = runs.length > 0 || this.board.status === null;
    this.more.hidden = runs.length >= total;
    this.showCompare();
  }

  dispose(): void {
    this.observer.disconnect();
  }

  private see(entries: readonly IntersectionObserverEntry[]): void {
    for (const { isIntersecting, target } of entries) {
      const run = (target as HTMLElement).dataset.run;
      if (isIntersecting && run) this.seen.add(run);
    }
    this.show();
  }

  private row(run: ListedRun): RunRow {
    let row = this.rows.get(run.run_id);
    if (!row) {
      row = new RunRow(run.run_id, this.rowActions);
      this.rows.set(run.run_id, row);
      this.observer.observe(row.element);
    }
    const { losses, live } = this.board;
    if (this.seen.has(run.run_id)) losses.want(run.run_id, run.last_step);
    row.show(run, losses.of(run.run_id), this.chosen.has(run.run_id), live);
    return row;
  }

  private forget(run: string): void {
    this.observer.unobserve(this.rows.get(run)!.element);
    this.rows.delete(run);
    this.seen.delete(run);
    this.chosen.delete(run);
  }

  private choose(run: string, chosen: boolean): void {
    if (chosen) this.chosen.add(run);
    else this.chosen.delete(run);
    this.showCompare();
  }

  private showCompare(): void {
    const { size } = this.chosen;
    const full = size > MOST_RUNS;
    this.compare.disabled = size < 2 || full;
    say(this.compare, size < 2 ? "Compare" : `Compare ${size} runs`);
    const few = "Tick the runs to compare.";
    const many = `At most ${MOST_RUNS} runs are shown at once.`;
    this.compare.title = full ? many : size < 2 ? few : "Open a dashboard of the ticked runs";
  }

  private openChosen(): void {
    // The newest is the one that is steered.
    const [first, ...rest] = this.board.runs
      .map(({ run_id }) => run_id)
      .filter((id) => this.chosen.has(id));
    if (first !== undefined) this.actions.open(first, rest);
  }
}
