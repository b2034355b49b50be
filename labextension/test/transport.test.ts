import { Stream, type StreamListener } from "../src/panel/transport.js";
import type { TinkerEvent } from "../src/panel/types.js";
import { stepEvent } from "./steps.js";

class FakeSource {
  static readonly CLOSED = 2;
  static all: FakeSource[] = [];
  readyState = 1;
  onopen: (() => void) | null = null;
  onerror: (() => void) | null = null;
  private readonly listeners = new Map<string, (message: { data: string }) => void>();

  constructor(readonly url: string) {
    FakeSource.all.push(this);
  }

  addEventListener(kind: string, listener: (message: { data: string }) => void) {
    this.listeners.set(kind, listener);
  }

  close() {
    this.readyState = FakeSource.CLOSED;
  }

  say(event: TinkerEvent) {
    this.listeners.get(event.kind)?.({ data: JSON.stringify(event) });
  }

  break(state: number) {
    this.readyState = state;
    this.onerror?.();
  }
}

let heard: number[];
let tasks: [number, number | null][];
let states: boolean[];
let stream: Stream;

beforeEach(() => {
  jest.useFakeTimers();
  FakeSource.all = [];
  heard = [];
  tasks = [];
  states = [];
  const listener: StreamListener = {
    onEvent: ({ id }) => heard.push(id),
    onState: (connected) => states.push(connected),
    onProgress: (task, state) => tasks.push([task, state?.done ?? null]),
  };
  stream = new Stream("/tinker/events", 7, listener, FakeSource as unknown as typeof EventSource);
});

afterEach(() => {
  stream.close();
  jest.useRealTimers();
});

const newest = () => FakeSource.all[FakeSource.all.length - 1]!;

test("it begins behind what is known", () => {
  expect(newest().url).toBe("/tinker/events?after=7");
});

test("an event that comes twice is told once", () => {
  for (const id of [8, 9, 9, 8, 10]) newest().say(stepEvent(id));
  expect(heard).toEqual([8, 9, 10]);
});

test("progress is told beside the events and moves nothing", () => {
  newest().say(stepEvent(8));
  const progress = { ...stepEvent(0), id: null as unknown as number, kind: "progress" };
  const state = { task: 3, what: "replaying", done: 4, total: 9, unit: "steps", over: false };
  newest().say({ ...progress, data: state });
  newest().say({ ...progress, data: { task: 3, over: true } });
  expect(tasks).toEqual([
    [3, 4],
    [3, null],
  ]);
  newest().break(FakeSource.CLOSED);
  jest.advanceTimersByTime(600);
  expect(newest().url).toBe("/tinker/events?after=8");
  const before = FakeSource.all[0]!;
  before.say({ ...progress, data: state });
  expect(tasks).toHaveLength(2);
  expect(heard).toEqual([8]);
});

test("a connection that the browser makes again is left to it", () => {
  newest().onopen?.();
  newest().break(0);
  jest.advanceTimersByTime(3_000);
  expect(FakeSource.all).toHaveLength(1);
  newest().onopen?.();
  expect(states).toEqual([true, false, true]);
});

test("one that it gives up is made again behind the last event", () => {
  newest().onopen?.();
  newest().say(stepEvent(8));
  newest().break(FakeSource.CLOSED);
  jest.advanceTimersByTime(600);
  expect(FakeSource.all).toHaveLength(2);
  expect(newest().url).toBe("/tinker/events?after=8");
  newest().say(stepEvent(8));
  newest().say(stepEvent(9));
  expect(heard).toEqual([8, 9]);
});

test("one that hangs while it is made again is given up", () => {
  newest().onopen?.();
  newest().break(0);
  jest.advanceTimersByTime(25_000);
  expect(FakeSource.all.length).toBeGreaterThan(1);
  expect(FakeSource.all[0]!.readyState).toBe(FakeSource.CLOSED);
});

test("after a sleep it is made again, for it may be dead without a sign", () => {
  newest().onopen?.();
  newest().say(stepEvent(20));
  jest.setSystemTime(Date.now() + 3_600_000);
  jest.advanceTimersByTime(5_000);
  expect(FakeSource.all).toHaveLength(2);
  expect(newest().url).toBe("/tinker/events?after=20");
});

test("one that is silent for long is said to be lost, and made again", () => {
  newest().onopen?.();
  newest().say(stepEvent(20));
  jest.advanceTimersByTime(40_000);
  expect([FakeSource.all.length, states]).toEqual([1, [true]]);
  jest.advanceTimersByTime(10_000);
  expect(FakeSource.all).toHaveLength(2);
  expect(FakeSource.all[0]!.readyState).toBe(FakeSource.CLOSED);
  expect(newest().url).toBe("/tinker/events?after=20");
  expect(states).toEqual([true, false]);
  jest.advanceTimersByTime(25_000); // the next one does not even open
  expect(FakeSource.all).toHaveLength(3);
  newest().onopen?.();
  expect(states.at(-1)).toBe(true);
});

test("a server that says nothing but that it is there is no silent one", () => {
  newest().onopen?.();
  for (let beats = 0; beats < 20; beats++) {
    jest.advanceTimersByTime(15_000);
    newest().say({ ...stepEvent(0), kind: "heartbeat" });
  }
  expect([FakeSource.all.length, states, heard]).toEqual([1, [true], []]);
});

test("where the network comes back the connection is not trusted", () => {
  const listeners = new Map<string, () => void>();
  const added = { addEventListener: (name: string, told: () => void) => listeners.set(name, told) };
  Object.assign(globalThis, added);
  stream.close();
  const listener = { onEvent: () => {}, onState: (state: boolean) => states.push(state) };
  stream = new Stream("/tinker/events", 7, listener, FakeSource as unknown as typeof EventSource);
  newest().onopen?.();
  listeners.get("online")!();
  expect(states).toEqual([true, false]);
  Object.assign(globalThis, { addEventListener: undefined });
});

test("closed, it is silent and holds no connection or timer", () => {
  stream.close();
  expect(newest().readyState).toBe(FakeSource.CLOSED);
  newest().say(stepEvent(8));
  expect(heard).toEqual([]);
  expect(jest.getTimerCount()).toBe(0);
});
