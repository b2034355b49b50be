// What a run was trained on last: which batches there are, and when to ask for them.

import { RequestFailed } from "./transport.js";
import type { Watched } from "./watched.js";

/** Of `GET runs/{run}/batches`: see docs/api.md. */
export interface Batch {
  id: number;
  step: number;
  branch: number;
  stepped: boolean;
  sequences: number;
  loss_mean: number | null;
}

type Column = (number | null)[];

/** As much of a sequence as is shown; columns have a value for each token. */
export interface Hard {
  number: number;
  loss_mean: number | null;
  counted: number;
  length: number;
  start: number;
  weighted_by: string | null;
  tokens: number[];
  text: string[] | null;
  special: number[];
  logprobs: Column | null;
  weights: Column;
  losses: Column | null;
  sampled_logprobs: Column | null;
}

export interface BatchView extends Batch {
  loss_fn: string | null;
  hardest: Hard[];
  problem: string | null;
}

const EVERY = 2_000;
const LISTED = 20;
const SEQUENCES = 8;
const LENGTH = 384;

/** Asks for batches of the run that is shown, only when there may be a new one, and seldom. */
export class Batches {
  listed: Batch[] = [];
  view: BatchView | null = null;
  /** The id of the one that is held; null follows the newest. */
  picked: number | null = null;
  problem: string | null = null;
  private watched: Watched | null = null;
  private seen = "";
  private asking = false;
  private askedAt = Number.NEGATIVE_INFINITY;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly changed: () => void,
    /** Whether what is shown must not be replaced now, because somebody reads it. */
    private readonly isRead: () => boolean,
    /** Whether anybody can see it. */
    private readonly isOpen: () => boolean,
  ) {}

  /** Look at a run as it is now; asks if there is something new, now or a little later. */
  show(watched: Watched | null, live: boolean): void {
    if (watched?.id !== this.watched?.id) this.forget();
    this.watched = watched;
    if (!watched || !live || this.stamp() === this.seen) return;
    this.askSoon();
  }

  /** Hold a batch, or with null follow the newest. */
  pick(id: number | null): void {
    this.picked = id;
    this.changed();
    this.atOnce();
  }

  /** Ask although nothing new is known of. */
  again(): void {
    this.seen = "";
    if (this.watched) this.askSoon();
  }

  /** What a person asks for does not wait. */
  private atOnce(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.askedAt = Number.NEGATIVE_INFINITY;
    this.again();
  }

  dispose(): void {
    this.forget();
    this.watched = null;
  }

  /** Whether a newer batch waits until what is shown has been read. */
  get waits(): boolean {
    const newest = this.listed[0];
    return this.picked === null && !!newest && !!this.view && newest.id !== this.view.id;
  }

  private forget(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.listed = [];
    this.view = this.picked = this.problem = null;
    this.seen = "";
    this.askedAt = Number.NEGATIVE_INFINITY;
  }

  /** What changes as the run goes on. */
  private stamp(): string {
    const { watched } = this;
    const { run, events } = watched ?? {};
    return `${watched?.id} ${run?.last_step?.id} ${events?.length} ${run?.state}`;
  }

  private askSoon(): void {
    if (this.asking || this.timer !== undefined) return;
    const wait = Math.max(0, this.askedAt + EVERY - Date.now());
    if (wait === 0) {
      void this.ask();
      return;
    }
    this.timer = setTimeout(() => {
      this.timer = undefined;
      if (this.isOpen()) void this.ask();
      else this.seen = "";
    }, wait);
  }

  private async ask(): Promise<void> {
    const { watched } = this;
    if (!watched) return;
    this.asking = true;
    this.askedAt = Date.now();
    const [stamp, picked] = [this.stamp(), this.picked];
    try {
      await this.read(watched);
      if (watched === this.watched) this.seen = stamp;
    } catch (error) {
      if (watched === this.watched) this.fail(error, stamp);
    }
    this.asking = false;
    this.changed();
    if (picked !== this.picked || watched !== this.watched) this.atOnce();
  }

  private fail(error: unknown, stamp: string): void {
    this.problem = error instanceof Error ? error.message : String(error);
    // What the server has refused it will refuse again, until there is something new.
    if (error instanceof RequestFailed && error.status !== null) this.seen = stamp;
  }

  private async read(watched: Watched): Promise<void> {
    const path = `${watched.path}/batches`;
    const answer = await watched.transport.get<{ batches: Batch[]; problem: string | null }>(
      `${path}?limit=${LISTED}`,
    );
    if (watched !== this.watched) return;
    this.listed = answer.batches;
    this.problem = answer.problem;
    const id = this.wanted();
    const listed = this.listed.find((batch) => batch.id === id);
    if (id === null || (this.view?.id === id && this.view.stepped)) return;
    if (this.view?.id === id && !listed) return;
    const view = await watched.transport.get<BatchView>(
      `${path}/${id}?sequences=${SEQUENCES}&length=${LENGTH}`,
    );
    if (watched === this.watched && id === this.wanted()) this.view = view;
  }

  private wanted(): number | null {
    if (this.picked !== null) return this.picked;
    if (this.view && this.isRead()) return this.view.id;
    return this.listed[0]?.id ?? null;
  }
}
