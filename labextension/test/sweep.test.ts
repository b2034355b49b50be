import {
  progress,
  type Sweep,
  suggested,
  told,
  whyNoCancel,
  whyNoSweep,
  whyUnused,
} from "../src/panel/sweep.js";
import { lossWindow, sweepMarks, sweepTraces } from "../src/panel/sweep_traces.js";
import { sentence } from "../src/panel/words.js";
import { event, RUN } from "./steps.js";

const point = (learning_rate: number, smoothed: number | null) => ({
  learning_rate,
  batch: 0,
  loss: smoothed,
  adjusted: smoothed === null ? null : smoothed + 0.1,
  smoothed,
});
const POINTS = [point(1e-6, 2), point(1e-4, 1.9), point(1e-2, 1), point(0.5, null)];
const SETTINGS = { min: 1e-6, max: 1, steps: 60 };
const DONE: Sweep = {
  status: "done",
  stage: null,
  step: 12,
  settings: SETTINGS,
  points: POINTS,
  diverged: true,
  suggestion: { learning_rate: 0.0012345, steepest: 0.0012345, lowest: 0.0456 },
  message: null,
};
const RUNNING: Sweep = { ...DONE, status: "running", stage: "sweeping", suggestion: null };
const THEME = {
  text: "t",
  ground: "g",
  muted: "m",
  grid: "r",
  warn: "w",
  error: "e",
  runs: ["1", "2"],
};

test("a suggestion has the digits that mean something", () => {
  expect(suggested(DONE)).toBe(0.0012);
  expect(suggested(RUNNING)).toBeNull();
  expect(suggested({ status: "none" })).toBeNull();
  expect(suggested(null)).toBeNull();
});

test("how far a sweep is", () => {
  expect(progress(RUNNING)).toBeCloseTo(4 / 60, 12);
  expect(progress({ ...RUNNING, stage: "copying" })).toBeNull();
  expect(told(RUNNING)).toBe("Step 4 of at most 60, at LR 0.5");
  expect(told({ ...RUNNING, stage: "measuring" })).toBe("Measuring its batches …");
  expect(told({ ...RUNNING, stage: "stopping" })).toBe("Stopping …");
});

test("what came of it", () => {
  expect(told(DONE)).toBe(
    "After step 12: the loss fell fastest at 0.0012 and was lowest at 0.046; it diverged at 0.5.",
  );
  const message = "The loss still fell at the end.";
  expect(told({ ...DONE, diverged: false, message })).toMatch(/lowest at 0.046. The loss still/);
  expect(told({ ...DONE, suggestion: null, message: "It did not fall." })).toBe("It did not fall.");
  expect(told({ status: "none" })).toBe("");
});

test("the curve has a gap where a loss is not finite", () => {
  const [raw, smoothed] = sweepTraces(POINTS, THEME) as { x: number[]; y: (number | null)[] }[];
  expect(raw!.x).toEqual([1e-6, 1e-4, 1e-2, 0.5]);
  expect(raw!.y).toEqual([2.1, 2, 1.1, null]);
  expect(smoothed!.y).toEqual([2, 1.9, 1, null]);
});

test("a divergence does not flatten what is before it", () => {
  expect(lossWindow([...POINTS, point(0.9, 400)])).toEqual([0.7, 3]);
  expect(lossWindow([point(1e-6, null)])).toBeNull();
  const [low, high] = lossWindow([point(1e-6, 0), point(1, 0)])!;
  expect(low).toBeLessThan(high);
});

test("the suggestion is marked, its text at its exponent", () => {
  const { shapes, annotations } = sweepMarks(DONE, THEME);
  expect(shapes.map(({ x0 }) => x0)).toEqual([0.0456, 0.0012]);
  expect(annotations.map(({ x }) => x)).toEqual([Math.log10(0.0456), Math.log10(0.0012)]);
  expect(annotations[1]!.text).toBe("suggested: 0.0012");
  expect(sweepMarks(RUNNING, THEME).shapes).toEqual([]);
});

test("a sweep that cannot be begun, and a suggestion that cannot be used, say why", () => {
  expect(whyNoSweep(RUN, true, { status: "none" })).toBeNull();
  expect(whyNoSweep({ ...RUN, ended: "closed" }, true, DONE)).toBeNull();
  expect(whyNoSweep(RUN, false, DONE)).toContain("does not answer");
  expect(whyNoSweep(null, true, DONE)).toContain("no run");
  expect(whyNoSweep(RUN, true, null)).toContain("looked up");
  expect(whyNoSweep(RUN, true, RUNNING)).toContain("under way");
  expect(whyNoCancel(true, RUNNING)).toBeNull();
  expect(whyNoCancel(false, RUNNING)).toContain("does not answer");
  expect(whyNoCancel(true, { ...RUNNING, stage: "stopping" })).toContain("once the engine");
  expect(whyUnused(RUN, true, DONE)).toBeNull();
  expect(whyUnused(RUN, true, RUNNING)).toContain("no suggestion");
  expect(whyUnused({ ...RUN, ended: "closed" }, true, DONE)).toContain("closed");
  const controls = { ...RUN.controls, learning_rate: 0.0012 };
  expect(whyUnused({ ...RUN, controls }, true, DONE)).toContain("uses it");
});

test("what is told of a sweep", () => {
  const begun = event(1, "lr_find_started", { settings: SETTINGS });
  expect(sentence(begun)).toBe("Step 5: a sweep over learning rates began on a copy by ada");
  const { suggestion } = DONE;
  expect(sentence(event(2, "lr_find_done", { status: "done", suggestion }))).toBe(
    "Step 5: the sweep suggests LR 0.0012",
  );
  const failed = { status: "failed", suggestion: null, message: "it died." };
  expect(sentence(event(3, "lr_find_done", failed))).toContain("rates failed: it died.");
});
