// A run's steps in memory: columns of numbers, each step once, within a bound.

import type { Step } from "./types.js";

const COLUMNS = {
  id: (s: Step) => s.id,
  branch: (s: Step) => s.branch,
  step: (s: Step) => s.step,
  time: (s: Step) => s.time,
  loss: (s: Step) => s.loss_mean,
  gradNorm: (s: Step) => s.grad_norm,
  clip: (s: Step) => s.grad_clip_norm,
  used: (s: Step) => s.learning_rate,
  asked: (s: Step) => s.learning_rate_requested ?? s.learning_rate,
  tokens: (s: Step) => s.tokens,
  memory: (s: Step) => s.memory_bytes,
} as const;

export type Column = keyof typeof COLUMNS;
const NAMES = Object.keys(COLUMNS) as Column[];

/** The steps of one run, in the order of their ids; a number that is missing is NaN. */
export class Series {
  private columns = new Map<Column, Float64Array>(
    NAMES.map((name) => [name, new Float64Array(1024)]),
  );
  length = 0;
  lastId = 0;

  /** Beyond `bound` steps, every second one of the older half is forgotten. */
  constructor(private readonly bound = 250_000) {}

  /** Whether the step was new. Steps come with rising ids; one that was seen is left out. */
  add(step: Step): boolean {
    if (step.id <= this.lastId) return false;
    this.makeRoom();
    for (const name of NAMES) {
      this.columns.get(name)![this.length] = COLUMNS[name](step) ?? Number.NaN;
    }
    this.length += 1;
    this.lastId = step.id;
    return true;
  }

  /** A view of a column; not to be kept beyond the next `add`. */
  column(name: Column): Float64Array {
    return this.columns.get(name)!.subarray(0, this.length);
  }

  at(name: Column, index: number): number {
    return this.columns.get(name)![index < 0 ? this.length + index : index] ?? Number.NaN;
  }

  /** Indices of the steps that the run's state came by, and of those on branches that were left. */
  split(upto: Map<number, number>): { live: Uint32Array; left: Map<number, number[]> } {
    const [branch, step] = [this.column("branch"), this.column("step")];
    const live = new Uint32Array(this.length);
    const left = new Map<number, number[]>();
    let count = 0;
    for (let i = 0; i < this.length; i++) {
      if (step[i]! <= (upto.get(branch[i]!) ?? -1)) {
        live[count] = i;
        count += 1;
      } else {
        const own = left.get(branch[i]!);
        if (own) own.push(i);
        else left.set(branch[i]!, [i]);
      }
    }
    return { live: live.subarray(0, count), left };
  }

  private makeRoom(): void {
    const capacity = this.columns.get("id")!.length;
    if (this.length < Math.min(capacity, this.bound)) return;
    if (this.length >= this.bound) this.thin();
    else for (const name of NAMES) this.grow(name, Math.min(2 * capacity, this.bound));
  }

  private grow(name: Column, capacity: number): void {
    const larger = new Float64Array(capacity);
    larger.set(this.columns.get(name)!);
    this.columns.set(name, larger);
  }

  private thin(): void {
    const half = this.length >> 1;
    const kept = half >> 1;
    for (const column of this.columns.values()) {
      for (let i = 0; i < kept; i++) column[i] = column[2 * i]!;
      column.copyWithin(kept, half, this.length);
    }
    this.length -= half - kept;
  }
}
