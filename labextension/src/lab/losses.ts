// The newest losses of runs, for their sparklines.

import type { Transport } from "../panel/transport.js";
import type { Step } from "../panel/types.js";

// Ids are counted over all runs: where others train beside it, a run's last steps reach back further.
const WIDER = 8;

interface Point {
  id: number;
  loss: number;
}

export class Losses {
  private readonly points = new Map<string, Point[]>();
  private readonly queue: [run: string, last: number][] = [];
  private asking = false;

  constructor(
    private readonly transport: Pick<Transport, "get">,
    /** How many steps are wanted. */
    private readonly most: () => number,
    private readonly changed: () => void,
  ) {}

  of(run: string): number[] {
    const most = this.most();
    return most === 0 ? [] : (this.points.get(run) ?? []).slice(-most).map(({ loss }) => loss);
  }

  /** Take a step of the stream; it counts for runs that `want` was called for. */
  add(step: Step): void {
    const points = this.points.get(step.run_id);
    if (!points || step.loss_mean === null) return;
    if (step.id <= (points[points.length - 1]?.id ?? 0)) return;
    points.push({ id: step.id, loss: step.loss_mean });
    if (points.length > 2 * this.most() + 2) points.splice(0, points.length - this.most());
  }

  /** Ask for the steps up to a run's last one, unless that was done; one run after the other. */
  want(run: string, last: Step | null): void {
    if (this.most() === 0 || this.points.has(run)) return;
    this.points.set(run, []);
    if (last === null) return;
    this.queue.push([run, last.id]);
    if (!this.asking) void this.work();
  }

  /** Forget all: another number of steps is wanted. */
  clear(): void {
    this.points.clear();
    this.queue.length = 0;
  }

  private async work(): Promise<void> {
    this.asking = true;
    for (let next = this.queue.shift(); next !== undefined; next = this.queue.shift()) {
      const [run, last] = next;
      await this.load(run, last).catch(() => this.points.delete(run));
      this.changed();
    }
    this.asking = false;
  }

  private async load(run: string, last: number): Promise<void> {
    const most = this.most();
    let rows = await this.page(run, last - most);
    const whole = rows.length >= most || (rows[0]?.step ?? 1) <= 1;
    if (!whole) rows = await this.page(run, last - WIDER * most);
    const newest = rows[rows.length - 1]?.id ?? 0;
    const read = rows.flatMap(({ id, loss_mean }) =>
      loss_mean === null ? [] : [{ id, loss: loss_mean }],
    );
    const come = (this.points.get(run) ?? []).filter(({ id }) => id > newest);
    this.points.set(run, [...read, ...come]);
  }

  private async page(run: string, after: number): Promise<Step[]> {
    const path = `runs/${encodeURIComponent(run)}/steps?after=${Math.max(0, after)}`;
    return (await this.transport.get<{ steps: Step[] }>(path)).steps;
  }
}
