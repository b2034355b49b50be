import { Newsroom, shortName } from "../src/lab/news.js";
import type { TinkerEvent } from "../src/panel/types.js";
import { event } from "./steps.js";

const RUN = "3b84f8e2-1111-2222:train:0";
const of = (id: number, kind: string, data = {}): TinkerEvent => ({
  ...event(id, kind, data),
  run_id: RUN,
});

test("a pause is told of with its reason, and can be undone", () => {
  const news = new Newsroom().news(of(1, "paused", { reason: "by ada" }), 0);
  expect(news).toMatchObject({ kind: "paused", type: "warning", run: RUN, resumable: true });
  expect(news!.text).toBe("Run 3b84f8e2:0 is paused at step 5: by ada");
});

test("a guard that pauses is told of once", () => {
  const room = new Newsroom();
  const why = { reason: "the loss 9 is a spike" };
  expect(room.news(of(1, "guard", { ...why, paused: true }), 0)).toMatchObject({
    kind: "diverged",
    type: "error",
    resumable: true,
  });
  expect(room.news(of(2, "paused", why), 0)).toBeNull();
  expect(room.news(of(3, "paused", { reason: "by ada" }), 0)).not.toBeNull();
  expect(room.news(of(4, "paused", why), 0)).not.toBeNull();
});

test("a reason names the run as shortly as the rest does", () => {
  const news = new Newsroom().news(of(1, "run_ended", { reason: `${RUN} is over.` }), 0);
  expect(news!.text).toBe("Run 3b84f8e2:0 has ended at step 5. 3b84f8e2:0 is over.");
});

test("a run that could not be created is an error, which stays, and not an end", () => {
  const data = { reason: "This run could not be created.", failed: true, error: `no ${RUN}` };
  const news = new Newsroom().news(of(1, "run_ended", data), 0);
  expect(news).toMatchObject({ kind: "failed", type: "error", resumable: false });
  expect(news!.text).toBe("Run 3b84f8e2:0 could not be created: no 3b84f8e2:0");
});

test("a request that failed is told of once, until the run steps", () => {
  const room = new Newsroom();
  const failed = (id: number, error: string) =>
    room.news(of(id, "request_failed", { request: "forward_backward", seq_id: id, error }), 0);
  expect(failed(1, "too long")).toMatchObject({ kind: "failed", type: "error", run: RUN });
  expect(failed(2, "too long")).toBeNull();
  expect(failed(3, "no weights")!.text).toBe(
    "Run 3b84f8e2:0: forward_backward failed at step 5: no weights",
  );
  room.news(of(4, "step"), 0);
  expect(failed(5, "no weights")).not.toBeNull();
});

test("a step that is skipped pauses nothing", () => {
  const news = new Newsroom().news(of(1, "guard", { reason: "nan", paused: false }), 0);
  expect(news).toMatchObject({ kind: "diverged", type: "warning", resumable: false });
});

test("what happened before the page was opened is no news", () => {
  const paused = of(1, "paused", { reason: "by ada" });
  expect(new Newsroom().news(paused, paused.time + 1)).toBeNull();
  expect(new Newsroom().news(paused, paused.time - 1)).not.toBeNull();
});

test("an old alarm still belongs to the pause that comes after the page was opened", () => {
  const room = new Newsroom();
  const why = { reason: "the loss 9 is a spike" };
  const guard = of(1, "guard", { ...why, paused: true });
  expect(room.news(guard, guard.time + 0.5)).toBeNull();
  expect(room.news(of(2, "paused", why), guard.time + 0.5)).toBeNull();
});

test("the engine's death and a revival are told of, steps and changes are not", () => {
  const room = new Newsroom();
  const died = { ...event(1, "engine_died", { reason: "killed" }, null), run_id: null };
  expect(room.news(died, 0)).toMatchObject({ kind: "engine", type: "error", run: null });
  expect(room.news(of(2, "run_revived", { seconds: 3.2 }), 0)!.text).toBe(
    "Run 3b84f8e2:0 is back at step 5, after 3 s.",
  );
  for (const kind of ["step", "control_changed", "resumed", "rewound", "engine_started"]) {
    expect(room.news(of(9, kind), 0)).toBeNull();
  }
});

test("a run's name is short and tells the runs of a session apart", () => {
  expect(shortName("0123456789:train:12")).toBe("01234567:12");
});
