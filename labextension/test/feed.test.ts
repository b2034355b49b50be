import { Feed } from "../src/panel/feed.js";
import { RequestFailed, type StreamListener, type Transport } from "../src/panel/transport.js";
import type { Run, Step, Task, TinkerEvent } from "../src/panel/types.js";
import { event, RUN, step, stepEvent } from "./steps.js";

/** A server of one run, whose pages can be held back. */
class FakeServer implements Transport {
  steps: Step[] = [];
  events: TinkerEvent[] = [];
  down = false;
  ended: string | null = null;
  memory = 1;
  after: number | null = null;
  listener: StreamListener | null = null;
  beforePage: () => void = () => {};
  asked: string[] = [];
  /** What holds an answer back, or fails in its place. */
  before: (path: string) => Promise<void> | void = () => {};

  async get<T>(path: string): Promise<T> {
    this.asked.push(path);
    await this.before(path);
    if (this.down) throw new RequestFailed("down", null);
    if (path === "status") return { status: { memory_total_bytes: this.memory } } as T;
    const run: Run = {
      ...RUN,
      ended: this.ended,
      last_step: this.steps[this.steps.length - 1] ?? null,
    };
    const [, after] = /after=(\d+)/.exec(path) ?? [];
    if (path.startsWith("runs?")) return { runs: [run] } as T;
    if (after === undefined) return run as T;
    const rows: { id: number }[] = path.includes("/steps") ? this.steps : this.events;
    const page = rows.filter(({ id }) => id > Number(after)).slice(0, 3);
    this.beforePage();
    return { steps: page, events: page } as T;
  }

  async post<T>(): Promise<T> {
    return {} as T;
  }

  async delete<T>(): Promise<T> {
    return {} as T;
  }

  async put<T>(): Promise<T> {
    return {} as T;
  }

  follow(after: number, listener: StreamListener): () => void {
    this.after = after;
    this.listener = listener;
    listener.onState(true);
    return () => {
      this.listener = null;
    };
  }
}

let server: FakeServer;
let feed: Feed;

beforeEach(() => {
  jest.useFakeTimers();
  server = new FakeServer();
  server.steps = [1, 2, 3, 4, 5, 6, 7].map((id) => step(id));
});

afterEach(() => {
  feed.dispose();
  expect(jest.getTimerCount()).toBe(0);
  jest.useRealTimers();
});

const settle = () => jest.advanceTimersByTimeAsync(100);
const steps = (id = "a") => [...feed.watch(id).series.column("step")];

test("history comes in pages, and then what happens", async () => {
  feed = new Feed(server);
  const watched = feed.watch("a");
  await settle();
  expect(steps()).toEqual([1, 2, 3, 4, 5, 6, 7]);
  expect(server.after).toBe(7);
  server.listener!.onEvent(stepEvent(8));
  expect(steps()).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  expect(watched.run!.last_step!.step).toBe(8);
});

test("a step that comes while its history is read is there once, in its place", async () => {
  feed = new Feed(server);
  let next = 7;
  server.beforePage = () => {
    if (next >= 10) return;
    next += 1;
    server.steps.push(step(next));
    server.listener!.onEvent(stepEvent(next));
  };
  feed.watch("a");
  await settle();
  expect(steps()).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
});

test("a server that does not answer at first is asked again", async () => {
  server.down = true;
  feed = new Feed(server);
  feed.watch("a");
  await settle();
  expect(feed.connection).toBe("reconnecting");
  expect(feed.problem).toBe("down");
  server.down = false;
  await jest.advanceTimersByTimeAsync(2_500);
  expect(feed.connection).toBe("live");
  expect(steps()).toHaveLength(7);
});

test("what happened beside the steps is known once", async () => {
  server.events = [event(3, "paused", { reason: "a" }), event(5, "resumed")];
  feed = new Feed(server);
  const watched = feed.watch("a");
  await settle();
  server.listener!.onEvent(event(5, "resumed"));
  server.listener!.onEvent(event(9, "guard", { rule: "plateau" }));
  expect(watched.events.map(({ id }) => id)).toEqual([3, 5, 9]);
});

test("the list of runs tells which have ended", async () => {
  feed = new Feed(server);
  await settle();
  expect(feed.runs[0]!.ended).toBeNull();
  server.ended = "its session has ended";
  server.listener!.onEvent(event(9, "run_ended"));
  await settle();
  expect(feed.runs[0]!.ended).toBe("its session has ended");
});

test("a new engine's memory is asked for", async () => {
  feed = new Feed(server);
  await settle();
  expect(feed.status!.status!.memory_total_bytes).toBe(1);
  server.memory = 2;
  server.listener!.onEvent({ ...event(9, "engine_started"), run_id: null });
  await settle();
  expect(feed.status!.status!.memory_total_bytes).toBe(2);
});

test("what takes long is known while it lasts and the connection stands", async () => {
  feed = new Feed(server);
  await settle();
  let changes = 0;
  feed.subscribe(() => {
    changes += 1;
  });
  const told = (done: number): Task => ({
    task: 3,
    run_id: null,
    what: "loading tiny",
    done,
    total: 9,
    unit: "tensors",
  });
  const { onProgress, onState } = server.listener!;
  for (const done of [1, 2]) onProgress!(3, told(done));
  expect([...feed.tasks.values()]).toEqual([told(2)]);
  onProgress!(3, null);
  expect(feed.tasks.size).toBe(0);
  expect(changes).toBe(3);
  onProgress!(3, told(4));
  onState(false);
  expect(feed.tasks.size).toBe(0);
});

test("nothing is kept of a run that nobody shows", async () => {
  feed = new Feed(server);
  const first = feed.watch("a");
  expect(feed.watch("a")).toBe(first);
  feed.release(first);
  feed.release(first);
  expect(feed.watch("a")).not.toBe(first);
  await settle();
});

test("each step of a short history is told at once, those of a long one together", async () => {
  feed = new Feed(server);
  const watched = feed.watch("a");
  await settle();
  let told = 0;
  feed.subscribe(() => {
    told += 1;
  });
  for (const id of [8, 9]) server.listener!.onEvent(stepEvent(id));
  expect(told).toBe(2);
  for (let id = 10; id < 3_000; id++) watched.series.add(step(id));
  for (let id = 3_000; id < 3_010; id++) server.listener!.onEvent(stepEvent(id));
  expect(told).toBe(2);
  await jest.advanceTimersByTimeAsync(400);
  expect(told).toBe(3);
  server.listener!.onEvent(event(3_010, "paused", { reason: "a" }));
  expect(told).toBe(4);
  expect(watched.series.at("step", -1)).toBe(3_009);
});

const created = (id: number) => ({ ...event(id, "run_created"), run_id: "b" });
const lists = () => server.asked.filter((path) => path.startsWith("runs?")).length;
/** A promise, and what ends it. */
function held(): [Promise<void>, () => void] {
  let let_go = () => {};
  return [new Promise<void>((done) => (let_go = done)), () => let_go()];
}

test("a list of runs that does not come is asked for again", async () => {
  feed = new Feed(server);
  await settle();
  server.before = (path) => {
    if (path.startsWith("runs?")) throw new RequestFailed("away", 502);
  };
  server.ended = "its session has ended";
  for (const id of [9, 10]) server.listener!.onEvent(created(id));
  await settle();
  expect([lists(), feed.runs[0]!.ended]).toEqual([2, null]);
  server.before = () => {};
  await jest.advanceTimersByTimeAsync(2_500);
  expect([lists(), feed.runs[0]!.ended]).toEqual([3, "its session has ended"]);
  await jest.advanceTimersByTimeAsync(10_000);
  expect(lists()).toBe(3);
});

test("lists of runs are asked for one after the other, and the last is what is shown", async () => {
  feed = new Feed(server);
  await settle();
  const [first, go] = held();
  server.before = (path) => (path.startsWith("runs?") ? first : undefined);
  for (const id of [9, 10, 11]) server.listener!.onEvent(created(id));
  await settle();
  expect(lists()).toBe(2);
  server.before = () => {};
  go();
  await settle();
  expect(lists()).toBe(3);
});

test("after a connection that died nothing waits for what was asked by it", async () => {
  feed = new Feed(server);
  await settle();
  const [never] = held();
  server.before = () => never;
  server.listener!.onEvent(created(9));
  await settle();
  server.before = () => {};
  server.listener!.onState(false);
  server.ended = "its session has ended";
  server.listener!.onState(true);
  await settle();
  expect(feed.runs[0]!.ended).toBe("its session has ended");
});

test("states that cannot be looked up are said to be, until they can", async () => {
  feed = new Feed(server);
  feed.watch("a");
  await settle();
  server.down = true;
  await jest.advanceTimersByTimeAsync(3_000);
  expect([feed.connection, feed.problem]).toEqual(["live", "down"]);
  server.down = false;
  await jest.advanceTimersByTimeAsync(3_000);
  expect(feed.problem).toBeNull();
  server.before = (path) => {
    if (path === "runs/a") throw new RequestFailed("There is no run.", 404);
  };
  await jest.advanceTimersByTimeAsync(3_000);
  expect(feed.problem).toBeNull();
});

test("a state that is not answered is asked for once", async () => {
  feed = new Feed(server);
  feed.watch("a");
  await settle();
  const [never] = held();
  server.before = () => never;
  const before = server.asked.length;
  await jest.advanceTimersByTimeAsync(30_000);
  expect(server.asked.length - before).toBe(1);
  server.before = () => {};
  server.listener!.onState(false);
  server.listener!.onState(true);
  await settle();
  expect(server.asked.filter((path) => path === "runs/a").length).toBeGreaterThan(2);
});

test("an answer that was overtaken by a newer one does not count", async () => {
  feed = new Feed(server);
  const watched = feed.watch("a");
  await settle();
  const [late, go] = held();
  server.before = () => late;
  const older = watched.refresh();
  server.before = () => {};
  server.ended = "its session has ended";
  await watched.refresh();
  server.ended = null;
  go();
  await older;
  expect(watched.run!.ended).toBe("its session has ended");
});

test("events do not pile up for a run whose history cannot be read", async () => {
  feed = new Feed(server);
  const watched = feed.watch("a");
  server.before = (path) => {
    if (path.startsWith("runs/a")) throw new RequestFailed("There is no run.", 404);
  };
  await settle();
  expect(watched.problem).toBe("There is no run.");
  for (let id = 8; id < 100; id++) server.listener!.onEvent(stepEvent(id));
  const kept = Object.values(watched).filter(Array.isArray);
  expect(kept.flat()).toEqual([]);
});

test("what came while a history could not be read is there once it can", async () => {
  feed = new Feed(server);
  const watched = feed.watch("a");
  server.before = (path) => {
    if (path.startsWith("runs/a")) throw new RequestFailed("away", 502);
  };
  await settle();
  server.steps.push(step(8));
  server.listener!.onEvent(stepEvent(8));
  server.before = () => {};
  await jest.advanceTimersByTimeAsync(2_500);
  server.listener!.onEvent(stepEvent(9));
  expect(watched.loading).toBe(false);
  expect(steps()).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
});
