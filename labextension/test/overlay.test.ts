/** @jest-environment jsdom */

import { lineage } from "../src/panel/branches.js";
import { Legend, leftBranches } from "../src/panel/legend.js";
import { title } from "../src/panel/picker.js";
import { RUN_COLOURS } from "../src/panel/theme.js";
import { tracesOf } from "../src/panel/traces.js";
import type { Branch } from "../src/panel/types.js";
import { Watched } from "../src/panel/watched.js";
import { THEME, VIEW } from "./looks.js";
import { RUN, step } from "./steps.js";

function watched(id: string, branches: Branch[] = []): Watched {
  const made = new Watched(id, null as never, () => {});
  for (const number of [1, 2, 3, 4]) made.series.add(step(number));
  for (const [i, branch] of branches.entries()) {
    made.series.add(step(5 + i, { branch: branch.number, step: branch.step + 1 }));
  }
  const branch = branches.at(-1)?.number ?? 0;
  const last_step = step(4, { loss_mean: 0.25, branch });
  made.run = { ...RUN, run_id: id, branches, last_step };
  made.upto = lineage(branches);
  return made;
}

interface Drawn {
  name?: string;
  yaxis?: string;
  hoverinfo?: string;
  customdata?: number[];
  line?: { color: string; dash?: string };
}

const traces = (run: Watched, place: number) =>
  tracesOf(run, THEME.runs[place]!, place === 0, VIEW, THEME) as Drawn[];

test("each run is drawn in its colour on every axis", () => {
  for (const place of [0, 1, 2]) {
    const drawn = traces(watched("b"), place).filter(
      ({ line }) => line && ![THEME.warn, THEME.muted].includes(line.color),
    );
    expect(new Set(drawn.map(({ line }) => line!.color))).toEqual(new Set([THEME.runs[place]]));
    expect(new Set(drawn.map(({ yaxis }) => yaxis))).toEqual(new Set([undefined, "y2", "y3"]));
  }
});

test("a compared run is named by its title, and a click on it means no step of the main run", () => {
  const other = watched("b:train:0");
  const said = traces(other, 1).filter(({ hoverinfo }) => hoverinfo !== "skip");
  expect(said.map(({ name, customdata }) => [name, customdata])).toEqual([
    [title(other.run!), undefined],
  ]);
  const own = traces(watched("a"), 0).filter(({ name }) => name === "loss");
  expect(own).toHaveLength(1);
  expect(own[0]!.customdata).toEqual([0, 0, 0, 0]);
});

test("branches that were left are dotted, in the colour of their run", () => {
  const branches = [{ number: 1, parent: 0, step: 2 }];
  const dotted = traces(watched("b", branches), 1).filter(({ line }) => line?.dash === "dot");
  expect(dotted.map(({ line }) => line!.color)).toEqual([THEME.runs[1]]);
});

test("a branch that was left begins on the run's line, smoothed as that is", () => {
  const run = watched("b", [{ number: 1, parent: 0, step: 2 }]);
  const [left, , line] = tracesOf(run, "blue", true, VIEW, THEME) as { x: number[]; y: number[] }[];
  expect(left!.x).toEqual([2, 3, 4]);
  expect(left!.y[0]).toBeCloseTo(line!.y[line!.x.indexOf(2)]!, 12);
  const whole = watched("c");
  const uncut = (tracesOf(whole, "blue", true, VIEW, THEME) as { y: number[] }[])[1]!.y;
  for (const [i, value] of uncut.slice(1).entries()) expect(left!.y[i]).toBeCloseTo(value, 12);
});

test("which branches were left, and where", () => {
  expect(leftBranches(watched("a"))).toEqual([]);
  const branches = [
    { number: 1, parent: 0, step: 10 },
    { number: 2, parent: 0, step: 4 },
  ];
  expect(leftBranches(watched("a", branches))).toEqual([
    { number: 0, upto: 4 },
    { number: 1, upto: null },
  ]);
});

test("the legend names runs, their colours and branches, and lets go of one", () => {
  const dropped: string[] = [];
  const legend = new Legend((id) => dropped.push(id));
  const runs = [watched("a:train:0", [{ number: 1, parent: 0, step: 2 }]), watched("b:train:0")];
  legend.show(runs);
  const entries = () => [...legend.element.children] as HTMLElement[];
  const text = entries().map(({ textContent }) => textContent);
  expect(text[0]).toContain(title(runs[0]!.run!));
  expect(text[0]).toContain("step 4, loss 0.25");
  expect(text[0]).toContain("branch 0 left at step 2");
  expect(text[1]).not.toContain("branch");
  const colours = entries().map(({ style }) => style.getPropertyValue("--jt-colour"));
  expect(colours).toEqual(["var(--jt-run-0)", "var(--jt-run-1)"]);
  const before = entries();
  runs[1]!.run!.last_step = step(5, { loss_mean: 0.125 });
  legend.show(runs);
  expect(entries()[1]!.textContent).toContain("step 5, loss 0.125");
  expect(entries()).toEqual(before); // the same elements: a click amid a change is not lost
  const [none, drop] = entries().map((entry) => entry.querySelector("button")!);
  expect([none!.hidden, drop!.hidden]).toEqual([true, false]);
  drop!.click();
  expect(dropped).toEqual(["b:train:0"]);
});

// How colours look to people who lack a kind of cone: Machado, Oliveira and Fernandes (2009), for
// linear RGB.
const VISIONS = {
  trichromat: [1, 0, 0, 0, 1, 0, 0, 0, 1],
  protanope: [0.152, 1.053, -0.205, 0.115, 0.786, 0.099, -0.004, -0.048, 1.052],
  deuteranope: [0.367, 0.861, -0.228, 0.28, 0.673, 0.047, -0.012, 0.043, 0.969],
  tritanope: [1.256, -0.077, -0.179, -0.078, 0.931, 0.148, 0.005, 0.691, 0.304],
};

function linear(colour: string): number[] {
  return [1, 3, 5].map((at) => {
    const value = Number.parseInt(colour.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
}

const times = (matrix: number[], vector: number[]) =>
  [0, 3, 6].map((row) => vector.reduce((sum, x, at) => sum + matrix[row + at]! * x, 0));

function lab(rgb: number[]): number[] {
  const clipped = rgb.map((x) => Math.min(1, Math.max(0, x)));
  const toXyz = [0.4124, 0.3576, 0.1805, 0.2126, 0.7152, 0.0722, 0.0193, 0.1192, 0.9505];
  const [x, y, z] = times(toXyz, clipped).map((value, at) => {
    const ratio = value / [0.9505, 1, 1.089][at]!;
    return ratio > 0.008856 ? Math.cbrt(ratio) : 7.787 * ratio + 16 / 116;
  });
  return [116 * y! - 16, 500 * (x! - y!), 200 * (y! - z!)];
}

const luminance = (colour: string) =>
  linear(colour).reduce((sum, x, at) => sum + [0.2126, 0.7152, 0.0722][at]! * x, 0);

describe.each([
  ["light", "#ffffff"],
  ["dark", "#212121"],
] as const)("colours in the %s", (name, ground) => {
  const colours = RUN_COLOURS[name];

  test.each(Object.entries(VISIONS))("are far apart to a %s", (_, vision) => {
    const seen = colours.map((colour) => lab(times(vision, linear(colour))));
    for (const [i, one] of seen.entries()) {
      for (const other of seen.slice(i + 1)) {
        // A difference of 2.3 is just noticeable; thin lines want much more.
        expect(Math.hypot(...one.map((x, at) => x - other[at]!))).toBeGreaterThan(25);
      }
    }
  });

  test("stand out from the ground, as WCAG 1.4.11 has it", () => {
    for (const colour of colours) {
      const [low, high] = [luminance(colour), luminance(ground)].sort((a, b) => a - b);
      expect((high! + 0.05) / (low! + 0.05)).toBeGreaterThanOrEqual(3);
    }
  });
});
