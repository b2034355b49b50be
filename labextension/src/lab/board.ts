// What JupyterLab knows of the server: its engine and its runs, from the page's one stream and from
// asking now and then.

import type { Feed } from "../panel/feed.js";
import type { Transport } from "../panel/transport.js";
import type { Step, TinkerEvent } from "../panel/types.js";
import { Losses } from "./losses.js";
import type { Settings } from "./settings.js";
import type { ListedRun, Status } from "./types.js";

const SOON = 100;
const GATHER = 200; // between two drawings of what came by the stream
const PAGE = 50;

type Stream = Pick<Feed, "connection" | "problem" | "subscribe">;

export class Board {
  /** Newest first; the newest `PAGE`, and more when they are asked for. */
  runs: ListedRun[] = [];
  /** How many there are. */
  total = 0;
  status: Status | null = null;
  readonly losses: Losses;
  private limit = PAGE;
  private connection = "connecting";
  private readonly listeners = new Set<() => void>();
  private polling: ReturnType<typeof setTimeout> | undefined;
  private refreshing: ReturnType<typeof setTimeout> | undefined;
  private drawing: ReturnType<typeof setTimeout> | undefined;
  private readonly unsubscribe: () => void;

  constructor(
    readonly transport: Transport,
    private readonly stream: Stream,
    private settings: Settings,
  ) {
    this.losses = new Losses(
      transport,
      () => this.settings.sparkline,
      () => this.changed(),
    );
    this.unsubscribe = stream.subscribe(() => this.connected());
    this.poll();
  }

  /** Why what is shown may not be so any more; null while the stream is there. */
  get problem(): string | null {
    if (this.stream.connection === "live") return null;
    if (this.stream.connection === "connecting") return "Connecting …";
    return this.stream.problem ?? "The server does not answer; trying again.";
  }

  get live(): boolean {
    return this.stream.connection === "live";
  }

  /** The run that started last among those that have not ended. */
  get newest(): ListedRun | null {
    return this.runs.find((run) => run.ended === null) ?? null;
  }

  find(id: string): ListedRun | null {
    return this.runs.find((run) => run.run_id === id) ?? null;
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  configure(settings: Settings): void {
    const other = settings.sparkline !== this.settings.sparkline;
    this.settings = settings;
    if (other) this.losses.clear();
    this.poll();
    this.changed();
  }

  /** Take an event of the stream. */
  heard(event: TinkerEvent): void {
    if (event.kind === "step") this.stepped(event.data as unknown as Step);
    else this.refreshSoon();
  }

  showMore(): void {
    this.limit = Math.min(1000, this.limit + PAGE);
    this.refreshSoon();
  }

  refreshSoon(): void {
    clearTimeout(this.refreshing);
    this.refreshing = setTimeout(() => void this.refresh(), SOON);
  }

  async refresh(): Promise<void> {
    try {
      const [page, status] = await Promise.all([
        this.transport.get<{ runs: ListedRun[]; total: number }>(`runs?limit=${this.limit}`),
        this.transport.get<Status>("status"),
      ]);
      for (const run of page.runs) {
        // A step may have come by the stream while the answer was under way.
        const known = this.find(run.run_id)?.last_step;
        if (known && known.id > (run.last_step?.id ?? 0)) run.last_step = known;
      }
      [this.runs, this.total, this.status] = [page.runs, page.total, status];
      this.changed();
    } catch {
      // The stream tells that the server is gone, and when it is there again.
    }
  }

  dispose(): void {
    this.unsubscribe();
    for (const timer of [this.polling, this.refreshing, this.drawing]) clearTimeout(timer);
    this.listeners.clear();
  }

  private poll(): void {
    clearTimeout(this.polling);
    this.polling = setTimeout(() => this.poll(), 1000 * this.settings.poll);
    if (this.live && !globalThis.document?.hidden) void this.refresh();
  }

  private connected(): void {
    const { connection } = this.stream;
    if (connection === this.connection) return;
    this.connection = connection;
    if (connection === "live") this.refreshSoon();
    this.changed();
  }

  private stepped(step: Step): void {
    this.losses.add(step);
    const run = this.find(step.run_id);
    if (run && step.id > (run.last_step?.id ?? 0)) run.last_step = step;
    this.drawing ??= setTimeout(() => this.changed(), GATHER);
  }

  private changed(): void {
    clearTimeout(this.drawing);
    this.drawing = undefined;
    for (const listener of this.listeners) listener();
  }
}
