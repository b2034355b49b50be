/** @jest-environment jsdom */

import { lineage } from "../src/panel/branches.js";
import { Readouts } from "../src/panel/readouts.js";
import type { Run, Status, Step } from "../src/panel/types.js";
import { Watched } from "../src/panel/watched.js";
import { RUN, step } from "./steps.js";

const GIB = 2 ** 30;

function shown(last: Partial<Step>, run: Partial<Run> = {}, total: number | null = 16 * GIB) {
  const readouts = new Readouts();
  const watched = new Watched("a", null as never, () => {});
  for (let id = 1; id <= 40; id++) watched.series.add(step(id));
  watched.run = { ...RUN, ...run, last_step: step(40, last) };
  watched.upto = lineage(run.branches ?? []);
  const status: Status = { status: { device: "cpu", dtype: "float32", memory_total_bytes: total } };
  readouts.show(watched, status);
  const cards = [...readouts.element.querySelectorAll<HTMLElement>(".jt-card")];
  const part = (card: HTMLElement, name: string) => card.querySelector(`.jt-${name}`)!.textContent!;
  const text = Object.fromEntries(
    cards
      .filter((card) => !card.hidden)
      .map((card) => [part(card, "name"), [part(card, "value"), part(card, "more")]]),
  );
  const bar = readouts.element.querySelector<HTMLProgressElement>("progress")!;
  return { text, bar: bar.hidden ? null : bar.value };
}

test("what was asked for is shown beside what was used, where they differ", () => {
  expect(shown({}).text.LR).toEqual(["0.001", ""]);
  expect(shown({ learning_rate: 5e-4 }).text.LR).toEqual(["5e-4", "asked: 0.001"]);
  expect(shown({ grad_clip_norm: 0.5 }).text["Gradient norm"]).toEqual(["1", "clipped at 0.5"]);
});

test("memory comes with what there is, where that is known", () => {
  expect(shown({}).text.Memory).toEqual(["1.0 GiB", "of 16.0 GiB"]);
  expect(shown({}, {}, null).text.Memory).toEqual(["1.0 GiB", ""]);
});

test("how long it will take is told where the client has said how many steps it makes", () => {
  const { text, bar } = shown({});
  expect([text.ETA, text.Step, bar]).toEqual([undefined, ["40", ""], null]);
  const told = shown({}, { session_tags: ["total_steps=100"] });
  expect([told.text.ETA, told.text.Step, told.bar]).toEqual([
    ["1 min 0 s", ""],
    ["40", "of 100"],
    0.4,
  ]);
});

test("after a rewind the steps that are made again take time, and an ended run takes none", () => {
  const session_tags = ["total_steps=100"];
  const branches = [{ number: 1, parent: 0, step: 6 }];
  const rewound = shown({}, { session_tags, branches });
  expect([rewound.text.ETA, rewound.bar]).toEqual([["1 min 34 s", ""], 0.06]);
  const ended = shown({}, { session_tags, ended: "it was closed" });
  expect([ended.text.ETA, ended.bar]).toEqual([undefined, 0.4]);
});

test("time goes on to the newest step", () => {
  expect(shown({}).text.Elapsed).toEqual(["40 s", ""]);
  expect(shown({ time: 1000 + 3_725 }).text.Elapsed).toEqual(["1 h 2 min", ""]);
});

test("a rewound run is at the step that it went back to", () => {
  const branches = [{ number: 1, parent: 0, step: 6 }];
  expect(shown({}, { branches }).text.Step).toEqual(["6", "rewound from 40"]);
  expect(shown({ branch: 1, step: 7 }, { branches }).text.Step).toEqual(["7", ""]);
});

test("throughput is of the last steps", () => {
  expect(shown({}).text["Tokens/s"]).toEqual(["100", "1 s a step"]);
});

test("without a run there are no numbers", () => {
  const readouts = new Readouts();
  readouts.show(null, null);
  const values = [...readouts.element.querySelectorAll(".jt-value")];
  expect(new Set(values.map(({ textContent }) => textContent))).toEqual(new Set(["–"]));
});
