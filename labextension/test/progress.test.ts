import { foremost, inWords } from "../src/panel/progress.js";
import type { Task } from "../src/panel/types.js";

const task = (fields: Partial<Task>): Task => ({
  task: 1,
  run_id: null,
  what: "loading tiny",
  done: 0,
  total: null,
  unit: "tensors",
  ...fields,
});

test("a task in words", () => {
  expect(inWords(task({}))).toBe("Loading tiny …");
  expect(inWords(task({ done: 3, total: 20 }))).toBe("Loading tiny: 3 of 20 tensors");
  const replay = task({ what: "replaying", unit: "steps", done: 412, total: 420 });
  expect(inWords(replay)).toBe("Replaying: 412 of 420 steps");
  const bytes = task({ what: "x", unit: "bytes", done: 2 ** 20, total: 2 ** 30 });
  expect(inWords(bytes)).toBe("X: 1 MiB of 1.0 GiB");
});

test("one task is shown: of the engine or the run, the newest whose length is known", () => {
  const engine = task({ task: 1 });
  const restoring = task({ task: 2, run_id: "a" });
  const loading = task({ task: 3, total: 20 });
  const replay = task({ task: 4, run_id: "a", total: 9, unit: "steps" });
  const other = task({ task: 5, run_id: "b", total: 9 });
  const later = task({ task: 6 });
  expect(foremost([], "a")).toBeNull();
  expect(foremost([other], "a")).toBeNull();
  expect(foremost([engine, restoring], "a")).toBe(restoring);
  expect(foremost([engine, restoring], null)).toBe(engine);
  expect(foremost([engine, loading, other, later], "a")).toBe(loading);
  expect(foremost([engine, loading, replay, other, later], "a")).toBe(replay);
});
