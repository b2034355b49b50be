import { tracesOf } from "../src/panel/traces.js";
import type { Step } from "../src/panel/types.js";
import { Watched } from "../src/panel/watched.js";
import { THEME, VIEW } from "./looks.js";
import { RUN, step } from "./steps.js";

interface Drawn {
  name?: string;
  mode: string;
  yaxis?: string;
  x: number[];
  y: number[];
  line?: { color: string; dash?: string; shape?: string };
}

function traces(steps: Partial<Step>[], main = true, view = VIEW): Drawn[] {
  const watched = new Watched("a", null as never, () => {});
  for (const [i, more] of steps.entries()) watched.series.add(step(i + 1, more));
  watched.run = RUN;
  return tracesOf(watched, "blue", main, view, THEME) as unknown as Drawn[];
}

const clipLine = (all: Drawn[]) => all.find(({ line }) => line?.dash === "dash");
const marks = (all: Drawn[]) => all.filter(({ mode }) => mode === "markers");
const places = ({ x, y }: Drawn) => x.map((at, i) => [at, y[i]]);

const CLIPPED: Partial<Step>[] = [
  { grad_norm: 3, grad_clip_norm: 0 }, // clipping is off
  { grad_norm: 0.5, grad_clip_norm: 1 },
  { grad_norm: 1, grad_clip_norm: 1 }, // as it is, not clipped
  { grad_norm: 2, grad_clip_norm: 1 },
  { grad_norm: 4, grad_clip_norm: 2.5 },
  { grad_norm: null, grad_clip_norm: 1 },
  { grad_norm: 5, grad_clip_norm: null },
];

test("the norm that is clipped to is a line, with a hole where nothing is clipped", () => {
  const clip = clipLine(traces(CLIPPED))!;
  expect([clip.yaxis, clip.line!.color]).toEqual(["y2", THEME.warn]);
  expect(places(clip)).toEqual([
    [1, Number.NaN],
    [2, 1],
    [3, 1],
    [4, 1],
    [5, 2.5],
    [6, 1],
    [7, Number.NaN],
  ]);
});

test("steps that were clipped are marked, on the curve of the norm, and no others", () => {
  const [clipped, ...others] = marks(traces(CLIPPED));
  expect(others).toEqual([]);
  expect(clipped!.yaxis).toBe("y2");
  expect(places(clipped!)).toEqual([
    [4, 2],
    [5, 4],
  ]);
  const [zoomed] = marks(traces(CLIPPED, true, { ...VIEW, range: [4.5, 9] }));
  expect(zoomed!.x).toContain(5);
});

test("a run that another is compared with has neither, nor what was asked for", () => {
  const compared = traces(CLIPPED, false);
  expect([clipLine(compared), marks(compared)]).toEqual([undefined, []]);
  expect(compared.filter(({ yaxis }) => yaxis === "y3")).toHaveLength(1);
});

test("learning rates as asked for and as used are two curves", () => {
  const rates = [
    { learning_rate: 1e-3, learning_rate_requested: 1e-3 },
    { learning_rate: 5e-4, learning_rate_requested: 1e-3 },
    { learning_rate: 2e-4, learning_rate_requested: null }, // before there were any controls
  ];
  const [asked, used] = traces(rates).filter(({ yaxis }) => yaxis === "y3");
  expect([asked!.name, asked!.line]).toMatchObject(["asked", { color: "grey", dash: "dot" }]);
  expect(asked!.y).toEqual([1e-3, 1e-3, 2e-4]);
  expect([used!.name, used!.line]).toMatchObject(["used", { color: "blue", shape: "hv" }]);
  expect(used!.y).toEqual([1e-3, 5e-4, 2e-4]);
});
