import { lineage } from "../src/panel/branches.js";
import { decimate } from "../src/panel/decimate.js";
import { Series } from "../src/panel/series.js";
import { smooth } from "../src/panel/smooth.js";
import { step } from "./steps.js";

const range = (count: number) => Array.from({ length: count }, (_, i) => i);

describe("decimate", () => {
  const x = range(100_000);
  const y = x.map((i) => Math.sin(i / 500));

  test("draws few points of many, in their order, with both ends", () => {
    const kept = decimate(x, y, 0, 99_999, 500);
    expect(kept.length).toBeLessThanOrEqual(4 * 501);
    expect(kept).toEqual([...kept].sort((a, b) => a - b));
    expect([kept[0], kept.at(-1)]).toEqual([0, 99_999]);
  });

  test("keeps a single peak", () => {
    const peaked = [...y];
    peaked[54_321] = 50;
    expect(decimate(x, peaked, 0, 99_999, 300)).toContain(54_321);
  });

  test("keeps few points as they are", () => {
    expect(decimate(range(20), range(20), 0, 19, 500)).toEqual(range(20));
  });

  test("keeps one neighbour on either side of a window", () => {
    const kept = decimate(x, y, 1000, 1010, 500);
    expect(kept[0]).toBe(999);
    expect(kept.at(-1)).toBe(1011);
  });

  test("keeps holes", () => {
    const holed = [...y];
    holed[500] = Number.NaN;
    expect(decimate(x, holed, 0, 99_999, 10).some((i) => Number.isNaN(holed[i]!))).toBe(true);
  });
});

describe("smooth", () => {
  test("leaves values alone without weight, and a constant with any", () => {
    expect([...smooth([3, 1, 2], 0)]).toEqual([3, 1, 2]);
    for (const value of smooth(new Array(50).fill(2.5), 0.95)) expect(value).toBeCloseTo(2.5, 12);
  });

  test("is a normalised moving average", () => {
    const [first, second] = smooth([1, 3], 0.5);
    expect(first).toBe(1);
    expect(second).toBeCloseTo((0.5 * 0.5 * 1 + 0.5 * 3) / 0.75, 12);
  });

  test("leaves holes out", () => {
    const [first, hole, last] = smooth([2, Number.NaN, 2], 0.9);
    expect(first).toBe(2);
    expect(hole).toBeNaN();
    expect(last).toBeCloseTo(2, 12);
  });
});

describe("lineage", () => {
  test("a run that was never rewound is on branch 0", () => {
    expect([...lineage([])]).toEqual([[0, Number.POSITIVE_INFINITY]]);
  });

  test("a rewind of a rewound run to before the first one", () => {
    const branches = [
      { number: 1, parent: 0, step: 10 },
      { number: 2, parent: 0, step: 4 },
    ];
    expect([...lineage(branches)]).toEqual([
      [2, Number.POSITIVE_INFINITY],
      [0, 4],
    ]);
  });

  test("the way to the end of a branch that was left", () => {
    const branches = [
      { number: 1, parent: 0, step: 10 },
      { number: 2, parent: 0, step: 4 },
    ];
    expect([...lineage(branches, 1)]).toEqual([
      [1, Number.POSITIVE_INFINITY],
      [0, 10],
    ]);
    expect([...lineage(branches, 0)]).toEqual([[0, Number.POSITIVE_INFINITY]]);
  });

  test("nested branches", () => {
    const branches = [
      { number: 1, parent: 0, step: 10 },
      { number: 2, parent: 1, step: 14 },
    ];
    expect(lineage(branches).get(1)).toBe(14);
    expect(lineage(branches).get(0)).toBe(10);
  });
});

describe("Series", () => {
  test("takes each step once", () => {
    const series = new Series();
    expect([1, 2, 2, 1, 3].map((id) => series.add(step(id)))).toEqual([
      true,
      true,
      false,
      false,
      true,
    ]);
    expect([...series.column("step")]).toEqual([1, 2, 3]);
  });

  test("a number that is missing is a hole", () => {
    const series = new Series();
    series.add(step(1, { loss_mean: null, grad_norm: 0.5 }));
    expect(series.at("loss", -1)).toBeNaN();
    expect(series.at("gradNorm", -1)).toBe(0.5);
  });

  test("tells the steps of the run's state from those of branches that were left", () => {
    const series = new Series();
    for (const id of [1, 2, 3, 4]) series.add(step(id));
    series.add(step(5, { step: 3, branch: 1 }));
    const { live, left } = series.split(lineage([{ number: 1, parent: 0, step: 2 }]));
    expect([...live]).toEqual([0, 1, 4]);
    expect([...left]).toEqual([[0, [2, 3]]]);
  });

  test("stays within its bound, and keeps the newest steps whole", () => {
    const series = new Series(1000);
    for (let id = 1; id <= 20_000; id++) series.add(step(id));
    expect(series.length).toBeLessThanOrEqual(1000);
    const steps = [...series.column("step")];
    expect(steps.slice(-200)).toEqual(range(200).map((i) => 19_801 + i));
    expect(steps).toEqual([...steps].sort((a, b) => a - b));
    expect(steps[0]).toBe(1);
  });
});
