import { marksOf } from "../src/panel/marks.js";
import { Series } from "../src/panel/series.js";
import { duration, label, remaining, sentence, short, throughput } from "../src/panel/words.js";
import { event, RUN, step } from "./steps.js";

test("numbers as people read them", () => {
  expect([0, 1, 0.00003, 0.0125, 123456, null].map(short)).toEqual([
    "0",
    "1",
    "3e-5",
    "0.0125",
    "123500",
    "–",
  ]);
  expect([5, 65, 3700].map(duration)).toEqual(["5 s", "1 min 5 s", "1 h 1 min"]);
});

test("a change of controls says what is changed, and only that", () => {
  const before = { learning_rate_scale: 1, grad_clip_norm: null };
  const after = { learning_rate_scale: 0.5, grad_clip_norm: 0.25 };
  const changed = event(1, "control_changed", { before, after });
  expect(label(changed)).toBe("LR ×0.5, clip 0.25");
  expect(
    sentence(event(2, "request_failed", { request: "optim_step", seq_id: 4, error: "No." })),
  ).toBe("Step 5: optim_step number 4 failed: No.");
  expect(sentence(event(3, "run_ended", { failed: true, error: "No model." }, null))).toBe(
    "the run could not be created: No model.",
  );
  expect(sentence(changed)).toBe("Step 5: LR ×0.5, clip 0.25 by ada");
  const back = event(2, "control_changed", { before: after, after: before });
  expect(label(back)).toBe("LR as asked, clip as asked");
});

test("a ramp and a guard are named", () => {
  const was = { learning_rate_scale: 1, ramp: null };
  const ramp = { start: 5, steps: 100 };
  const says = (before: object, after: object) =>
    label(event(1, "control_changed", { before, after }));
  expect(says(was, { learning_rate_scale: 0.5, ramp })).toBe("LR ×0.5 over 100 steps");
  expect(says({ ramp }, { ramp: null })).toBe("LR ramp ended");
  const guards = { non_finite: false, loss_spike: null, plateau: { min_delta: 0, patience: 9 } };
  const other = { non_finite: true, loss_spike: null, plateau: null };
  expect(says({ guards }, { guards: other })).toBe("guard non finite on, guard plateau off");
});

test("marks of one step are one, and a guard's is grave", () => {
  const after = { learning_rate: 1e-5 };
  const marks = marksOf([
    event(1, "control_changed", { before: { learning_rate: null }, after }),
    event(2, "guard", { rule: "loss_spike", reason: "it is high", paused: true }),
    event(3, "checkpoint_saved", { path: "p" }, 6),
    event(4, "rewound", { abandoned: { branch: 0, step: 9 } }, 7),
    event(6, "resumed", {}, 7),
    event(5, "guard", { rule: "non_finite", reason: "a loss is not finite", paused: false }, 8),
  ]);
  expect(marks.map(({ step: at, text, grave }) => [at, text, grave])).toEqual([
    [5, "LR 1e-5, loss spike", true],
    [7, "rewound from 9, resumed", false],
    [8, "skipped", true],
  ]);
});

test("throughput counts the tokens after the first of the steps", () => {
  const series = new Series();
  expect(throughput(series)).toBeNaN();
  for (let id = 1; id <= 50; id++) series.add(step(id, { time: id * 2, tokens: id }));
  const tokens = Array.from({ length: 20 }, (_, i) => 31 + i).reduce((sum, n) => sum + n);
  expect(throughput(series)).toBeCloseTo(tokens / 40, 12);
  expect(remaining({ ...RUN, user_metadata: { total_steps: 60 } }, series, 50)).toBeCloseTo(20, 12);
  expect(remaining(RUN, series, 50)).toBeNaN();
  const tagged = { ...RUN, session_tags: ["mine", "total_steps=60"] };
  expect(remaining(tagged, series, 50)).toBeCloseTo(20, 12);
  expect(remaining(tagged, series, 30)).toBeCloseTo(60, 12); // after a rewind
  expect(remaining({ ...tagged, ended: "it was closed" }, series, 50)).toBeNaN();
  for (const total of ["many", -1, null, {}]) {
    expect(remaining({ ...RUN, user_metadata: { total_steps: total } }, series, 50)).toBeNaN();
  }
});
