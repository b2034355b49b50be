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
const LIVE = 100; // that are shown however old they are, those that were asked last

interface Page {
  runs: ListedRun[];
  total: number;
}

type Stream = Pick<Feed, "connection" | "problem" | "subscribe">;

export class Board {
  /** Newest first; the newest `PAGE`, more when they are asked for, and older ones that live. */
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

  /** Whether a run, or without an id the newest, may be one to steer, as far as is known here. */
  steerable(id: string | null): boolean {
    const run = id === null ? this.newest : this.find(id);
    return run === null ? id !== null : run.ended === null;
  }

  /** That run, also one that is behind those that are known here; null if it has ended. Rejects as
   * the transport does. */
  async toSteer(id: string | null): Promise<ListedRun | null> {
    if (id === null) return this.newest;
    const path = `runs/${encodeURIComponent(id)}`;
    const run = this.find(id) ?? (await this.transport.get<ListedRun>(path));
    return run.ended === null ? run : null;
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
      const [page, living, status] = await Promise.all([
        this.transport.get<Page>(`runs?limit=${this.limit}`),
        this.transport.get<Page>(`runs?live=1&limit=${LIVE}`),
        this.transport.get<Status>("status"),
      ]);
      const runs = merged(page.runs, living.runs);
      for (const run of runs) {
        // A step may have come by the stream while the answer was under way.
        const known = this.find(run.run_id)?.last_step;
        if (known && known.id > (run.last_step?.id ?? 0)) run.last_step = known;
      }
      [this.runs, this.total, this.status] = [runs, page.total, status];
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

/** A page of runs, and behind it those that live and are older than all of it. */
function merged(page: ListedRun[], living: ListedRun[]): ListedRun[] {
  const known = new Set(page.map((run) => run.run_id));
  const older = living.filter((run) => !known.has(run.run_id));
  return [...page, ...older].sort((one, other) => other.created_at - one.created_at);
}
