import { CommTransport } from "../src/panel/comm.js";
import { Feed } from "../src/panel/feed.js";
import { event, RUN, step, stepEvent } from "./steps.js";

// Node's own, for which there are no types here.
declare function require(name: "node:zlib"): { deflateSync(text: string): Uint8Array };
declare function setImmediate(work: (value?: unknown) => void): void;
const { deflateSync } = require("node:zlib");

type Said = {
  kind: string;
  page: string;
  number: number;
  method: string;
  path: string;
  body: unknown;
  after: number;
};

/** A widget's model, and the kernel behind it. */
class FakeModel {
  said: Said[] = [];
  heard = new Set<(message: unknown, buffers: DataView[]) => void>();
  dead = false;

  send(message: unknown) {
    if (this.dead) throw new Error("Cannot send");
    this.said.push(message as Said);
  }

  on(name: string, heard: (message: unknown, buffers: DataView[]) => void) {
    expect(name).toBe("msg:custom");
    this.heard.add(heard);
  }

  off(_: string, heard: (message: unknown, buffers: DataView[]) => void) {
    this.heard.delete(heard);
  }

  tell(message: object, body?: unknown) {
    const packed = body === undefined ? [] : [deflateSync(JSON.stringify(body))];
    const views = packed.map((b) => new DataView(b.buffer, b.byteOffset, b.byteLength));
    for (const heard of this.heard) heard(message, views);
  }

  of(kind: string): Said[] {
    return this.said.filter((said) => said.kind === kind);
  }

  answer(status: number | null, body: unknown, asked = this.of("ask").at(-1)!) {
    const { page, number, path } = asked;
    this.tell({ kind: "answer", page, number, path, status }, body);
  }
}

let model: FakeModel;
let transport: CommTransport;
let waits: boolean[];

beforeEach(() => {
  // Unpacking is done by Node's own streams, whose time is not ours.
  jest.useFakeTimers({ doNotFake: ["nextTick", "setImmediate", "queueMicrotask"] });
  model = new FakeModel();
  transport = new CommTransport(model);
  waits = [];
  transport.onWaiting = (waiting) => waits.push(waiting);
});

afterEach(() => {
  transport.dispose();
  expect(model.heard.size).toBe(0);
  expect(jest.getTimerCount()).toBe(0);
  jest.useRealTimers();
});

async function settle() {
  for (let i = 0; i < 20; i++) {
    await transport.done;
    await new Promise((done) => setImmediate(done));
  }
}

test("what is set and what is ended goes by the kernel, too", async () => {
  const set = transport.put("runs/a/preview", { prompts: [] });
  const ended = transport.delete("runs/a/lr_find");
  expect(model.said.map(({ method, path, body }) => [method, path, body])).toEqual([
    ["PUT", "runs/a/preview", { prompts: [] }],
    ["DELETE", "runs/a/lr_find", undefined],
  ]);
  model.answer(200, { status: "cancelled" });
  model.answer(200, { prompts: [] }, model.said[0]);
  expect([await set, await ended]).toEqual([{ prompts: [] }, { status: "cancelled" }]);
});

test("what takes long is told as it goes on, and when it is over", async () => {
  const told: unknown[] = [];
  transport.follow(0, {
    onEvent: () => {},
    onState: () => {},
    onProgress: (task, state) => told.push([task, state?.run_id, state?.done]),
  });
  const data = { task: 4, what: "loading", done: 2, total: 9, unit: "tensors", over: false };
  model.tell({ kind: "progress" }, { run_id: null, data });
  model.tell({ kind: "progress" }, { run_id: null, data: { task: 4, over: true } });
  await settle();
  expect(told).toEqual([
    [4, null, 2],
    [4, undefined, undefined],
  ]);
});

test("questions go to the kernel and get their own answers", async () => {
  const first = transport.get("runs/a");
  const second = transport.post("runs/a/controls", { paused: true });
  expect(model.said.map(({ kind, path }) => [kind, path])).toEqual([
    ["ask", "runs/a"],
    ["ask", "runs/a/controls"],
  ]);
  model.answer(200, { paused: true });
  model.answer(200, { run_id: "a" }, model.said[0]);
  expect(await second).toEqual({ paused: true });
  expect(await first).toEqual({ run_id: "a" });
});

test("what is refused says why", async () => {
  const refused = transport.post("runs/a/controls", {});
  model.answer(400, { detail: "It cannot be." });
  await expect(refused).rejects.toMatchObject({ message: "It cannot be.", status: 400 });
  const silent = transport.get("runs");
  model.answer(null, { detail: "Nobody is there." });
  await expect(silent).rejects.toMatchObject({ message: "Nobody is there.", status: null });
});

test("another page's answers are not ours", async () => {
  let got: unknown = null;
  void transport.get("runs/a").then((answer) => {
    got = answer;
  });
  model.answer(200, "theirs", { ...model.said[0]!, page: "another" });
  await settle();
  expect(got).toBeNull();
  model.answer(200, "ours");
  await settle();
  expect(got).toBe("ours");
});

test("a busy kernel is asked once, and answers by itself what it tells all", async () => {
  const both = [transport.get("runs/a"), transport.get("runs/a")];
  expect(model.of("ask")).toHaveLength(1);
  jest.advanceTimersByTime(1_500);
  expect(waits).toEqual([true]);
  model.tell({ kind: "answer", path: "runs/a", status: 200 }, "told");
  expect(await Promise.all(both)).toEqual(["told", "told"]);
  expect(waits).toEqual([true, false]);
  model.tell({ kind: "answer", path: "runs/b", status: 200 }, "soon asked for");
  await settle();
  expect(await transport.get("runs/b")).toBe("soon asked for");
  expect(model.of("ask")).toHaveLength(1);
});

test("what was told before a change is not shown after it", async () => {
  model.tell({ kind: "answer", path: "runs/a", status: 200 }, "before");
  await settle();
  const changed = transport.post("runs/a/controls", {});
  model.answer(200, {});
  await changed;
  const now = transport.get("runs/a");
  model.answer(200, "after");
  expect(await now).toBe("after");
});

describe("the stream", () => {
  let heard: number[];
  let states: [boolean, string | null | undefined][];
  let stop: () => void;

  beforeEach(() => {
    heard = [];
    states = [];
    stop = transport.follow(7, {
      onEvent: ({ id }) => heard.push(id),
      onState: (connected, problem) => states.push([connected, problem]),
    });
  });

  const events = (behind: number, ...ids: number[]) =>
    model.tell({ kind: "events", behind }, ids.map(stepEvent));

  test("comes in batches, each event once and in order", async () => {
    expect(model.of("follow").map(({ after }) => after)).toEqual([7]);
    model.tell({ kind: "state", connected: true, problem: null });
    events(7, 8, 9);
    events(5, 6, 7, 8, 9, 10);
    events(10, 12);
    await settle();
    expect(heard).toEqual([8, 9, 10, 12]);
    model.tell({ kind: "state", connected: false, problem: "It broke." });
    await settle();
    expect(states).toEqual([
      [true, null],
      [false, "It broke."],
    ]);
  });

  test("a batch that was lost is asked for, and nothing is shown out of order", async () => {
    events(7, 8);
    events(20, 21);
    await settle();
    expect(heard).toEqual([8]);
    const [first, again] = model.of("follow");
    expect(again!.after).toBe(8);
    expect(again!.page).not.toBe(first!.page);
    expect(model.of("bye").map(({ page }) => page)).toEqual([first!.page]);
    events(8, 9, 20, 21);
    await settle();
    expect(heard).toEqual([8, 9, 20, 21]);
  });

  test("says that it lives, from where it is", async () => {
    events(7, 8);
    await settle();
    jest.advanceTimersByTime(20_500);
    expect(model.of("follow").at(-1)!.after).toBe(8);
  });

  test("ends with a word", () => {
    stop();
    expect(model.of("bye")).toHaveLength(1);
    jest.advanceTimersByTime(60_000);
    expect(model.of("follow")).toHaveLength(1);
  });

  test("a kernel that is gone is said to be", async () => {
    const asked = transport.get("runs");
    transport.end("The kernel was restarted.");
    await expect(asked).rejects.toMatchObject({ message: "The kernel was restarted." });
    await expect(transport.get("runs")).rejects.toMatchObject({ status: null });
    expect(states).toEqual([[false, "The kernel was restarted."]]);
  });

  test("a kernel that cannot be sent to is gone", async () => {
    model.dead = true;
    await expect(transport.get("runs")).rejects.toMatchObject({ status: null });
  });
});

test("a run that starts in a busy kernel is shown by what it tells", async () => {
  const feed = new Feed(transport);
  const runs = [{ ...RUN, run_id: "old" }];
  model.answer(200, { runs });
  await settle();
  expect(model.of("follow")).toHaveLength(1);
  model.tell({ kind: "state", connected: true, problem: null });
  // From here on the kernel hears nothing.
  const created = event(1, "run_created", {}, null);
  model.tell({ kind: "events", behind: 0 }, [created]);
  const tell = (path: string, body: unknown) =>
    model.tell({ kind: "answer", path, status: 200 }, body);
  tell("runs?limit=1000", { runs: [RUN, ...runs] });
  tell("runs/a", { ...RUN, last_step: step(3) });
  tell("runs/a/steps?after=0", { steps: [step(2), step(3)] });
  tell("runs/a/steps?after=3", { steps: [] });
  tell("runs/a/events?after=0", { events: [created] });
  tell("runs/a/events?after=1", { events: [] });
  await settle();
  expect(feed.runs.map(({ run_id }) => run_id)).toEqual(["a", "old"]);
  const watched = feed.watch("a");
  await settle();
  expect(watched.loading).toBe(false);
  model.tell({ kind: "events", behind: 1 }, [stepEvent(4)]);
  await settle();
  expect([...watched.series.column("step")]).toEqual([2, 3, 4]);
  feed.dispose();
});
