import { followed, isOwn, newestOwn } from "../src/panel/following.js";
import type { Run } from "../src/panel/types.js";
import { RUN } from "./steps.js";

const run = (run_id: string, kernel: string | null, ended: string | null = null): Run => ({
  ...RUN,
  run_id,
  ended,
  session_tags: kernel === null ? [] : ["mine", `jupyter-kernel=${kernel}`],
});

test("a kernel's runs are those that say so", () => {
  expect(isOwn(run("a", "k"), "k")).toBe(true);
  expect(isOwn(run("a", "kk"), "k")).toBe(false);
  expect(isOwn(run("a", null), "k")).toBe(false);
  expect(isOwn(run("a", "k"), null)).toBe(false);
});

test("the newest of this notebook goes before a newer one of another", () => {
  const runs = [run("c", "other"), run("b", "k"), run("a", "k")];
  expect(followed(runs, "k")?.run_id).toBe("b");
  expect(followed(runs, "other")?.run_id).toBe("c");
  expect(followed(runs, null)?.run_id).toBe("c");
});

test("once its own have ended, the newest of all is followed", () => {
  const runs = [run("c", null), run("b", "k", "its session has ended"), run("a", "k")];
  expect(followed(runs, "k")?.run_id).toBe("a");
  const over = runs.map((one) => ({ ...one, ended: "its session has ended" }));
  expect(followed(over, "k")?.run_id).toBe("c");
  expect(newestOwn(over, "k")).toBeUndefined();
  expect(followed([], "k")).toBeUndefined();
});
