import { sparklinePath, sparklineWords } from "../src/lab/sparkline.js";

const points = (path: string) =>
  path
    .slice(1)
    .split("L")
    .map((point) => point.split(",").map(Number) as [number, number]);

test("the first value is on the left, the highest on top", () => {
  const drawn = points(sparklinePath([3, 1, 2], 104, 24));
  expect(drawn).toEqual([
    [2, 2],
    [52, 22],
    [102, 12],
  ]);
});

test("a level curve lies in the middle", () => {
  expect(points(sparklinePath([5, 5], 104, 24)).map(([, y]) => y)).toEqual([12, 12]);
});

test("one value is no curve, and what is no number is left out", () => {
  expect(sparklinePath([])).toBe("");
  expect(sparklinePath([1])).toBe("");
  expect(sparklinePath([1, Number.NaN])).toBe("");
  expect(points(sparklinePath([1, Number.NaN, 2]))).toHaveLength(2);
});

test("many values take few points, and a spike among them stays", () => {
  const values = Array.from({ length: 10_000 }, (_, i) => (i === 6_543 ? 50 : 1 + (i % 7) / 10));
  const drawn = points(sparklinePath(values, 96, 24));
  expect(drawn.length).toBeLessThanOrEqual(2 * 96 + 2);
  const [top] = drawn.filter(([, y]) => y === 2);
  expect(top![0]).toBeCloseTo(2 + (92 * 6_543) / 9_999, 0);
  expect(drawn.every(([x], i) => i === 0 || x >= drawn[i - 1]![0])).toBe(true);
});

test("it is said in words, too", () => {
  expect(sparklineWords([1])).toContain("No curve");
  expect(sparklineWords([2.5, 2, 0.25])).toBe("Loss from 2.5 to 0.25 over the last 3 steps");
});
