// What a page knows of its server: one stream of events for all its panels.

import { Renewal } from "./renewal.js";
import { RequestFailed, ServerTransport, type Transport } from "./transport.js";
import type { Run, Status, Task, TinkerEvent } from "./types.js";
import { Watched } from "./watched.js";

const RUNS = "runs?limit=1000"; // as many as the server tells of at once
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
  private readonly listing = this.renewal(RUNS, ({ runs }: { runs: Run[] }) => {
    this.runs = runs;
  });
  private readonly looking = this.renewal("status", (status: Status) => {
    this.status = status;
  });
  /** Those whose state is being asked for. */
  private asking = new Set<Watched>();
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
      const { runs } = await this.transport.get<{ runs: Run[] }>(RUNS);
      this.runs = runs;
      this.changed();
    } catch (error) {
      if (this.disposed) return;
      this.connection = "reconnecting";
      this.problem = said(error);
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
    this.looking.now();
  }

  /** What the server says at a path, to be asked for again and again. */
  private renewal<T>(path: string, take: (answer: T) => void): Renewal {
    const ask = async (current: () => boolean) => {
      const answer = await this.transport.get<T>(path);
      if (!current() || this.disposed) return;
      take(answer);
      this.changed();
    };
    return new Renewal(ask, (retry) => this.after(RETRY, retry));
  }

  private load(watched: Watched): void {
    watched.load().catch(() => {
      if (!this.disposed && watched.users > 0) this.after(RETRY, () => this.load(watched));
    });
  }

  private heard(event: TinkerEvent): void {
    const { kind } = event;
    if (kind === "run_created" || kind === "run_ended") this.listing.now();
    if (kind === "engine_started") this.looking.now();
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
    if (!connected) this.forget();
    if (again) {
      this.listing.now();
      this.refreshStates();
      this.looking.now();
    }
    this.changed();
  }

  private refreshStates(): void {
    if (globalThis.document?.hidden || this.connection !== "live") return;
    for (const watched of this.watched.values()) {
      if (!watched.loading) void this.refreshState(watched);
    }
  }

  /** One question for a run at a time: on a connection that has died they would pile up. */
  private async refreshState(watched: Watched): Promise<void> {
    const { asking } = this;
    if (asking.has(watched)) return;
    asking.add(watched);
    let problem: string | null = null;
    try {
      await watched.refresh();
    } catch (error) {
      // A run that is gone says nothing of the server.
      if (!(error instanceof RequestFailed && error.status === 404)) problem = said(error);
    }
    asking.delete(watched);
    if (asking !== this.asking || this.disposed) return;
    if (this.connection !== "live" || problem === this.problem) return;
    this.problem = problem;
    this.changed();
  }

  /** What was asked by a connection that is lost may never be answered. */
  private forget(): void {
    this.listing.drop();
    this.looking.drop();
    this.asking = new Set();
  }

  private after(milliseconds: number, work: () => void): void {
    if (this.disposed) return;
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

const said = (error: unknown) => (error instanceof Error ? error.message : String(error));

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
