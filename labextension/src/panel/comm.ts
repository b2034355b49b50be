// The other way to the server: through the kernel, as jupyter_tinker/notebook/relay.py has it.

import {
  RequestFailed,
  type StreamListener,
  type TaskEvent,
  type Transport,
  taskOf,
} from "./transport.js";
import type { TinkerEvent } from "./types.js";

/** A widget's model, as far as messages go. */
export interface Courier {
  send(message: unknown): void;
  on(event: "msg:custom", heard: (message: unknown, buffers: DataView[]) => void): void;
  off(event: "msg:custom", heard: (message: unknown, buffers: DataView[]) => void): void;
}

interface Message {
  kind: "answer" | "events" | "progress" | "state";
  page?: string;
  number?: number;
  path?: string;
  status?: number | null;
  behind?: number;
  connected?: boolean;
  problem?: string | null;
}

interface Waiting {
  path: string;
  get: boolean;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

const SIGN_OF_LIFE = 20_000;
const ASK_AGAIN = 5_000;
// What the kernel tells unasked answers questions that are asked so soon afterwards.
const FRESH = 5_000;
const MOST_PUSHED = 64;
// A kernel that has not answered by then is busy.
const BUSY = 1_000;

let made = 0;

export class CommTransport implements Transport {
  /** Called when the kernel begins or ceases to keep a question waiting. */
  onWaiting: (waiting: boolean) => void = () => {};
  // Pages are told apart, because all that show the widget hear every message.
  private readonly page = newName();
  private follower = newName();
  private number = 0;
  /** When all that the kernel has told is unpacked and dealt with. */
  done: Promise<void> = Promise.resolve();
  private readonly waiting = new Map<number, Waiting>();
  private readonly gets = new Map<string, Promise<unknown>>();
  private readonly pushed = new Map<string, { at: number; value: unknown }>();
  private stream: { after: number; listener: StreamListener } | null = null;
  private askedAgain = 0;
  private ended: string | null = null;
  private patience: ReturnType<typeof setTimeout> | undefined;
  private readonly living: ReturnType<typeof setInterval>;
  private readonly hear = (message: unknown, buffers: DataView[]) => {
    // In their order, though each is unpacked for itself.
    this.done = this.done.then(() => this.heard(message as Message, buffers?.[0])).catch(() => {});
  };

  constructor(private readonly courier: Courier) {
    courier.on("msg:custom", this.hear);
    this.living = setInterval(() => this.follows(), SIGN_OF_LIFE);
  }

  get<T>(path: string): Promise<T> {
    const known = this.pushed.get(path);
    this.pushed.delete(path);
    if (known && Date.now() - known.at < FRESH) return Promise.resolve(known.value as T);
    // A busy kernel is not asked the same twice.
    let answer = this.gets.get(path);
    if (!answer) {
      answer = this.ask("GET", path).finally(() => this.gets.delete(path));
      this.gets.set(path, answer);
    }
    return answer as Promise<T>;
  }

  post<T>(path: string, body: unknown): Promise<T> {
    return this.change("POST", path, body);
  }

  put<T>(path: string, body: unknown): Promise<T> {
    return this.change("PUT", path, body);
  }

  delete<T>(path: string): Promise<T> {
    return this.change("DELETE", path);
  }

  follow(after: number, listener: StreamListener): () => void {
    this.stream = { after, listener };
    this.follows();
    return () => {
      this.stream = null;
      this.say({ kind: "bye", page: this.follower });
    };
  }

  /** The kernel is gone: nothing is answered any more. */
  end(why: string): void {
    this.ended = why;
    for (const [number, { reject }] of this.waiting) {
      this.waiting.delete(number);
      reject(new RequestFailed(why, null));
    }
    this.stream?.listener.onState(false, why);
    this.wait();
  }

  dispose(): void {
    clearInterval(this.living);
    this.stream = null;
    this.end("The panel is closed.");
    this.courier.off("msg:custom", this.hear);
  }

  private change<T>(method: string, path: string, body?: unknown): Promise<T> {
    // What was told before may not be so afterwards.
    return this.ask(method, path, body).finally(() => this.pushed.clear()) as Promise<T>;
  }

  private ask(method: string, path: string, body?: unknown): Promise<unknown> {
    if (this.ended) return Promise.reject(new RequestFailed(this.ended, null));
    this.number += 1;
    const number = this.number;
    return new Promise((resolve, reject) => {
      this.waiting.set(number, { path, get: method === "GET", resolve, reject });
      this.say({ kind: "ask", number, method, path, body });
      this.wait();
    });
  }

  /** That this page follows, from where it is: the first time, and to be known alive. */
  private follows(): void {
    const { stream, follower } = this;
    if (stream) this.say({ kind: "follow", page: follower, after: stream.after });
  }

  private say(message: object): void {
    if (this.ended) return;
    try {
      this.courier.send({ page: this.page, ...message });
    } catch {
      this.end("The kernel does not answer any more.");
    }
  }

  private async heard(message: Message, packed: DataView | undefined): Promise<void> {
    const body = packed ? await unpacked(packed) : null;
    if (message.kind === "answer") this.answered(message, body);
    else if (message.kind === "events") this.happened(message.behind ?? 0, body as TinkerEvent[]);
    else if (message.kind === "progress") this.progressed(body as TaskEvent);
    else this.stream?.listener.onState(message.connected === true, message.problem ?? null);
    this.wait();
  }

  private answered({ page, number, path, status }: Message, body: unknown): void {
    if (number === undefined) {
      this.push(path ?? "", body);
      return;
    }
    const asked = page === this.page ? this.waiting.get(number) : undefined;
    if (!asked) return;
    this.waiting.delete(number);
    if (status === 200) {
      asked.resolve(body);
      return;
    }
    const why = (body as { detail?: string } | null)?.detail;
    asked.reject(new RequestFailed(why ?? `The server answered ${status}.`, status ?? null));
  }

  private push(path: string, value: unknown): void {
    const asked = [...this.waiting].find(([, { get, path: other }]) => get && other === path);
    if (asked) {
      this.waiting.delete(asked[0]);
      asked[1].resolve(value);
      return;
    }
    this.pushed.delete(path);
    this.pushed.set(path, { at: Date.now(), value });
    if (this.pushed.size > MOST_PUSHED) this.pushed.delete(this.pushed.keys().next().value!);
  }

  private happened(behind: number, events: TinkerEvent[]): void {
    const { stream } = this;
    if (!stream) return;
    if (behind > stream.after) {
      this.lacks();
      return;
    }
    if (events.some(({ kind }) => kind !== "step")) this.pushed.clear();
    for (const event of events) {
      if (event.id <= stream.after) continue;
      stream.after = event.id;
      stream.listener.onEvent(event);
    }
  }

  private progressed(event: TaskEvent): void {
    this.stream?.listener.onProgress?.(event.data.task, taskOf(event));
  }

  /** Events were lost on the way, in a sleep for example; a new name is told them again. */
  private lacks(): void {
    if (Date.now() - this.askedAgain < ASK_AGAIN) return;
    this.askedAgain = Date.now();
    this.say({ kind: "bye", page: this.follower });
    this.follower = newName();
    this.follows();
  }

  private wait(): void {
    if (this.waiting.size > 0) {
      this.patience ??= setTimeout(() => this.onWaiting(true), BUSY);
    } else if (this.patience !== undefined) {
      clearTimeout(this.patience);
      this.patience = undefined;
      this.onWaiting(false);
    }
  }
}

function newName(): string {
  made += 1;
  return `${made}-${Math.random().toString(36).slice(2)}`;
}

async function unpacked(packed: DataView): Promise<unknown> {
  const bytes = new Uint8Array(packed.buffer, packed.byteOffset, packed.byteLength).slice();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
