// What a page knows of its server: one stream of events for all its panels.

import { RequestFailed, ServerTransport, type Transport } from "./transport.js";
import type { Run, Status, Task, TinkerEvent } from "./types.js";
import { Watched } from "./watched.js";

const RETRY = 2_000;
// What the server tells of no event: whether a run trains or waits for its client.
const STATE_EVERY = 3_000;
// Of runs that have made so many steps, one more is told in company.
const MANY_STEPS = 2_000;
const PACE = 300;

export type Connection = "connecting" | "live" | "reconnecting";

export class Feed {
  /** Newest first. */
  runs: Run[] = [];
  status: Status | null = null;
  connection: Connection = "connecting";
  /** Why there is no connection, where that is known. */
  problem: string | null = null;
  users = 0;
  /** What takes long just now, by its number. */
  readonly tasks = new Map<number, Task>();
  private readonly watched = new Map<string, Watched>();
  private readonly listeners = new Set<() => void>();
  private readonly timers = new Set<ReturnType<typeof setTimeout>>();
  private stop: (() => void) | null = null;
  private telling = false;
  private disposed = false;

  constructor(readonly transport: Transport) {
    void this.start();
    this.every(STATE_EVERY, () => this.refreshStates());
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Show a run; `release` it afterwards. */
  watch(id: string): Watched {
    let watched = this.watched.get(id);
    if (!watched) {
      watched = new Watched(id, this.transport, () => this.changed());
      this.watched.set(id, watched);
      if (this.stop) this.load(watched);
    }
    watched.users += 1;
    return watched;
  }

  release(watched: Watched): void {
    watched.users -= 1;
    if (watched.users > 0) return;
    watched.dispose();
    this.watched.delete(watched.id);
  }

  dispose(): void {
    this.disposed = true;
    this.stop?.();
    for (const timer of this.timers) clearTimeout(timer);
    for (const watched of this.watched.values()) watched.dispose();
    this.watched.clear();
    this.listeners.clear();
  }

  private changed(): void {
    for (const listener of this.listeners) listener();
  }

  /**
   * The stream begins behind the newest step that the list of runs tells of. What is older is there
   * when histories are read, which is later; what is newer comes. What both tell of counts once.
   */
  private async start(): Promise<void> {
    try {
      await this.refreshRuns();
    } catch (error) {
      if (this.disposed) return;
      this.connection = "reconnecting";
      this.problem = error instanceof RequestFailed ? error.message : String(error);
      this.changed();
      this.after(RETRY, () => void this.start());
      return;
    }
    if (this.disposed) return;
    const newest = Math.max(0, ...this.runs.map((run) => run.last_step?.id ?? 0));
    this.stop = this.transport.follow(newest, {
      onEvent: (event) => this.heard(event),
      onState: (connected, problem) => this.state(connected, problem),
      onProgress: (task, state) => this.progressed(task, state),
    });
    for (const watched of this.watched.values()) this.load(watched);
    this.refreshStatus();
  }

  private refreshStatus(): void {
    const told = this.transport.get<Status>("status").then((status) => {
      this.status = status;
      this.changed();
    });
    told.catch(() => {});
  }

  private async refreshRuns(): Promise<void> {
    const page = await this.transport.get<{ runs: Run[] }>("runs?limit=1000");
    this.runs = page.runs;
    this.changed();
  }

  private load(watched: Watched): void {
    watched.load().catch(() => {
      if (!this.disposed && watched.users > 0) this.after(RETRY, () => this.load(watched));
    });
  }

  private heard(event: TinkerEvent): void {
    const { kind } = event;
    if (kind === "run_created" || kind === "run_ended") this.refreshRuns().catch(() => {});
    if (kind === "engine_started") this.refreshStatus();
    if (event.run_id === null) for (const watched of this.watched.values()) watched.take(event);
    else this.watched.get(event.run_id)?.take(event);
    if (event.kind === "step") this.stepped();
    else this.changed();
  }

  private stepped(): void {
    if (this.telling) return;
    let steps = 0;
    for (const { series } of this.watched.values()) steps += series.length;
    if (steps < MANY_STEPS) {
      this.changed();
      return;
    }
    this.telling = true;
    this.after(PACE, () => {
      this.telling = false;
      this.changed();
    });
  }

  private progressed(task: number, state: Task | null): void {
    if (state) this.tasks.set(task, state);
    else this.tasks.delete(task);
    this.changed();
  }

  private state(connected: boolean, problem?: string | null): void {
    this.tasks.clear(); // a new connection tells of all that goes on
    const again = connected && this.connection === "reconnecting";
    this.connection = connected ? "live" : "reconnecting";
    this.problem = connected ? null : problem || "The server does not answer; trying again.";
    if (again) {
      this.refreshRuns().catch(() => {});
      this.refreshStates();
      this.refreshStatus();
    }
    this.changed();
  }

  private refreshStates(): void {
    if (globalThis.document?.hidden || this.connection !== "live") return;
    for (const watched of this.watched.values()) {
      if (!watched.loading) watched.refresh().catch(() => {});
    }
  }

  private after(milliseconds: number, work: () => void): void {
    const timer = setTimeout(() => {
      this.timers.delete(timer);
      work();
    }, milliseconds);
    this.timers.add(timer);
  }

  private every(milliseconds: number, work: () => void): void {
    this.after(milliseconds, () => {
      work();
      this.every(milliseconds, work);
    });
  }
}

// Every widget evaluates this file anew; a browser has six connections to a server for all of them.
const FEEDS = Symbol.for("jupyter_tinker.feeds");

/** The page's feed of a server; give it back with `releaseFeed`. The first one chooses its way. */
export function acquireFeed(baseUrl: string, transport?: Transport): Feed {
  const page = globalThis as unknown as { [FEEDS]?: Map<string, Feed> };
  page[FEEDS] ??= new Map();
  let feed = page[FEEDS].get(baseUrl);
  if (!feed) {
    feed = new Feed(transport ?? new ServerTransport(baseUrl));
    page[FEEDS].set(baseUrl, feed);
  }
  feed.users += 1;
  return feed;
}

export function releaseFeed(baseUrl: string, feed: Feed): void {
  feed.users -= 1;
  if (feed.users > 0) return;
  feed.dispose();
  (globalThis as unknown as { [FEEDS]?: Map<string, Feed> })[FEEDS]?.delete(baseUrl);
}
