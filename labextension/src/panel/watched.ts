// One run that a panel shows: its history first, and then what comes.

import { lineage } from "./branches.js";
import { NO_PREVIEW, type Preview, type Round, roundOf, thin } from "./preview.js";
import { Series } from "./series.js";
import { RequestFailed, type Transport } from "./transport.js";
import type { Run, Step, TinkerEvent } from "./types.js";

const MOST_EVENTS = 2_000;
const REFRESH_SOON = 50;

export class Watched {
  readonly series = new Series();
  readonly events: TinkerEvent[] = [];
  /** What the run answered, oldest first. */
  readonly rounds: Round[] = [];
  preview: Preview = NO_PREVIEW;
  run: Run | null = null;
  users = 0;
  loading = true;
  /** Why the run cannot be shown. */
  problem: string | null = null;
  /** Rises with everything that is to be drawn. */
  version = 0;
  upto = lineage([]);
  /** Events that came while the history is being read; null while it is not. */
  private early: TinkerEvent[] | null = null;
  private asked = 0;
  private answered = 0;
  private lastEvent = 0;
  private refreshing: ReturnType<typeof setTimeout> | undefined;

  constructor(
    readonly id: string,
    readonly transport: Transport,
    private readonly changed: () => void,
  ) {}

  get path(): string {
    return `runs/${encodeURIComponent(this.id)}`;
  }

  /** Read the history; afterwards everything up to now is known. Rejects as the transport does. */
  async load(): Promise<void> {
    const early: TinkerEvent[] = [];
    this.early = early;
    try {
      await this.refresh();
      await this.pages<Step>("steps", (step) => this.addStep(step));
      await this.pages<TinkerEvent>("events", (event) => this.addEvent(event));
    } catch (error) {
      this.early = null;
      this.problem = error instanceof Error ? error.message : String(error);
      this.changed();
      if (!(error instanceof RequestFailed) || error.status === 404) return;
      throw error;
    }
    this.early = null;
    this.loading = false;
    this.problem = null;
    for (const event of early) this.apply(event);
    this.version += 1;
    this.changed();
  }

  /** Take an event of the stream; while the history is read it waits, and before that it is a part of it. */
  take(event: TinkerEvent): void {
    if (!this.loading) this.apply(event);
    else this.early?.push(event);
  }

  /** What the server says of the run now. */
  async refresh(): Promise<void> {
    this.asked += 1;
    const number = this.asked;
    const run = await this.transport.get<Run>(this.path);
    if (number < this.answered) return; // an older answer, which was overtaken
    this.answered = number;
    // A step may have come by the stream while the answer was under way.
    const known = this.run?.last_step;
    if (known && known.id > (run.last_step?.id ?? 0)) run.last_step = known;
    this.run = run;
    this.upto = lineage(this.run.branches ?? []);
    this.version += 1;
    this.changed();
  }

  refreshSoon(): void {
    clearTimeout(this.refreshing);
    this.refreshing = setTimeout(() => this.refresh().catch(() => {}), REFRESH_SOON);
  }

  dispose(): void {
    clearTimeout(this.refreshing);
  }

  private async pages<T extends { id: number }>(
    what: "steps" | "events",
    add: (row: T) => void,
  ): Promise<void> {
    let after = what === "steps" ? this.series.lastId : this.lastEvent;
    for (;;) {
      const page = await this.transport.get<Record<string, T[]>>(
        `${this.path}/${what}?after=${after}`,
      );
      const rows = page[what] ?? [];
      if (rows.length === 0) return;
      for (const row of rows) add(row);
      after = rows[rows.length - 1]!.id;
      this.version += 1;
      this.changed();
    }
  }

  private apply(event: TinkerEvent): void {
    if (event.kind === "step") {
      this.addStep(event.data as unknown as Step);
    } else {
      this.addEvent(event);
      this.refreshSoon();
    }
    this.version += 1;
  }

  private addStep(step: Step): void {
    if (this.series.add(step) && this.run) {
      this.run.last_step = step;
      if (this.run.controls.steps_until_pause !== null) this.refreshSoon();
    }
  }

  private addEvent(event: TinkerEvent): void {
    if (event.id <= this.lastEvent) return;
    this.lastEvent = event.id;
    if (event.kind === "preview_sampled") {
      this.rounds.push(roundOf(event));
      thin(this.rounds);
      return;
    }
    if (event.kind === "preview_changed") this.preview = event.data as unknown as Preview;
    this.events.push(event);
    if (this.events.length > MOST_EVENTS) this.events.splice(0, MOST_EVENTS / 2);
  }
}
