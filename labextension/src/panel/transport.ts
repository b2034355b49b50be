// Talks to the Jupyter server that the page comes from: JSON both ways, and a stream of events.

import type { Task, TinkerEvent } from "./types.js";

/** What the server refused, or that it does not answer; the message is for people. */
export class RequestFailed extends Error {
  constructor(
    message: string,
    /** HTTP's, or null if there was no answer. */
    readonly status: number | null,
  ) {
    super(message);
  }
}

export interface StreamListener {
  onEvent(event: TinkerEvent): void;
  /** Called when the connection is there, and when it is lost, for a reason that may be known. */
  onState(connected: boolean, problem?: string | null): void;
  /** Called with the newest state of what takes long, and with null once a task is over. */
  onProgress?(task: number, state: Task | null): void;
}

export interface Transport {
  get<T>(path: string): Promise<T>;
  post<T>(path: string, body: unknown): Promise<T>;
  put<T>(path: string, body: unknown): Promise<T>;
  delete<T>(path: string): Promise<T>;
  /** Events behind `after`, each once, until the function that is returned is called. */
  follow(after: number, listener: StreamListener): () => void;
}

const KINDS = [
  "step run_created run_ended run_unloaded run_revived control_changed paused resumed rewound",
  "forked guard checkpoint_saved history_trimmed lr_find_started lr_find_done",
  "request_failed preview_changed preview_sampled engine_started engine_died engine_stopped",
].flatMap((line) => line.split(" "));

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 10_000;
// The browser's own attempts come every few seconds; beyond this, one that hangs is given up.
const PATIENCE = 15_000;
// Timers that come so late were asleep, and the connection may be dead without a sign.
const TICK = 5_000;
const ASLEEP = 90_000; // longer than browsers let the timers of hidden pages wait
// The server says something every 15 seconds, if only that it is there.
const SILENCE = 45_000;
// A question that changes nothing is answered by then, or on a connection that has died.
export const READING = 60_000;

/** A `progress` message of the stream. */
export interface TaskEvent {
  run_id: string | null;
  data: Omit<Task, "run_id"> & { over?: boolean };
}

/** The state of the task that a message tells of; null once that is over. */
export function taskOf({ run_id, data }: TaskEvent): Task | null {
  return data.over ? null : { ...data, run_id };
}

export class ServerTransport implements Transport {
  /** `baseUrl` is Jupyter's, with a slash at its end. */
  constructor(
    private readonly baseUrl: string,
    private readonly Source: typeof EventSource = globalThis.EventSource,
  ) {}

  get url(): string {
    return `${this.baseUrl}tinker`;
  }

  async get<T>(path: string): Promise<T> {
    return this.ask<T>(path, { signal: AbortSignal.timeout(READING) });
  }

  async post<T>(path: string, body: unknown): Promise<T> {
    return this.send<T>("POST", path, body);
  }

  async put<T>(path: string, body: unknown): Promise<T> {
    return this.send<T>("PUT", path, body);
  }

  private async send<T>(method: string, path: string, body: unknown): Promise<T> {
    const headers = { "Content-Type": "application/json", ...xsrf() };
    return this.ask<T>(path, { method, headers, body: JSON.stringify(body) });
  }

  async delete<T>(path: string): Promise<T> {
    return this.ask<T>(path, { method: "DELETE", headers: xsrf() });
  }

  follow(after: number, listener: StreamListener): () => void {
    const stream = new Stream(`${this.url}/events`, after, listener, this.Source);
    return () => stream.close();
  }

  private async ask<T>(path: string, init: RequestInit): Promise<T> {
    let answer: Response;
    try {
      answer = await fetch(`${this.url}/${path}`, { credentials: "same-origin", ...init });
    } catch {
      throw new RequestFailed(`The server at ${this.url} does not answer.`, null);
    }
    const body = await answer.json().catch(() => null);
    if (answer.ok && body !== null) return body as T;
    const why = body?.detail ?? `${this.url} answered with the status ${answer.status}.`;
    throw new RequestFailed(String(why), answer.status);
  }
}

/** What Jupyter wants to see of a page that changes something. */
function xsrf(): Record<string, string> {
  const token = /(?:^|; )_xsrf=([^;]*)/.exec(document.cookie)?.[1];
  return token ? { "X-XSRFToken": decodeURIComponent(token) } : {};
}

/**
 * An EventSource that never gives up, and goes on behind the last event that it has heard of.
 *
 * The browser connects again by itself where a connection breaks, but not after an answer other than
 * 200 (a proxy's, while the server starts), nor where a connection died without a sign: in a sleep, or
 * behind a proxy that keeps its half of it open.
 */
export class Stream {
  private source: EventSource | null = null;
  private pause = FIRST_PAUSE;
  private retry: ReturnType<typeof setTimeout> | undefined;
  private lostAt: number | null = null;
  private heardAt = Date.now();
  private tickedAt = Date.now();
  private readonly ticking: ReturnType<typeof setInterval>;
  private readonly wake = () => this.reopen();

  constructor(
    private readonly url: string,
    private after: number,
    private readonly listener: StreamListener,
    private readonly Source: typeof EventSource,
  ) {
    this.ticking = setInterval(() => this.tick(), TICK);
    globalThis.addEventListener?.("online", this.wake);
    this.open();
  }

  close(): void {
    clearInterval(this.ticking);
    globalThis.removeEventListener?.("online", this.wake);
    this.drop();
  }

  private drop(): void {
    clearTimeout(this.retry);
    this.source?.close();
    this.source = null;
  }

  private open(): void {
    const source = new this.Source(`${this.url}?after=${this.after}`);
    this.source = source;
    this.heardAt = Date.now();
    source.onopen = () => {
      this.heardAt = Date.now();
      this.pause = FIRST_PAUSE;
      this.lostAt = null;
      this.listener.onState(true);
    };
    source.onerror = () => this.lost();
    const listen = (kind: string, told: (message: MessageEvent<string>) => void) =>
      source.addEventListener(kind, (message: MessageEvent<string>) => {
        if (source !== this.source) return;
        this.heardAt = Date.now();
        told(message);
      });
    for (const kind of KINDS) listen(kind, (message) => this.heard(message));
    listen("progress", (message) => this.progressed(message));
    listen("heartbeat", () => {});
  }

  private heard(message: MessageEvent<string>): void {
    const event = JSON.parse(message.data) as TinkerEvent;
    if (event.id <= this.after) return;
    this.after = event.id;
    this.listener.onEvent(event);
  }

  private progressed(message: MessageEvent<string>): void {
    const event = JSON.parse(message.data) as TaskEvent;
    this.listener.onProgress?.(event.data.task, taskOf(event));
  }

  private lost(): void {
    this.lostAt ??= Date.now();
    this.listener.onState(false);
    if (this.source?.readyState !== this.Source.CLOSED) return; // the browser tries again
    this.drop();
    this.retry = setTimeout(() => this.open(), this.pause);
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE);
  }

  /** Give up a connection that may be dead, and say so until another is there. */
  private reopen(): void {
    this.lostAt = Date.now();
    this.listener.onState(false);
    this.drop();
    this.open();
  }

  private tick(): void {
    const now = Date.now();
    const late = now - this.tickedAt - TICK;
    this.tickedAt = now;
    if (this.source === null) return; // another is made soon
    const hangs = this.lostAt !== null && now - this.lostAt > PATIENCE;
    if (late > ASLEEP || hangs || now - this.heardAt > SILENCE) this.reopen();
  }
}
