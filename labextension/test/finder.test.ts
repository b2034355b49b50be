/** @jest-environment jsdom */

import "./page.js";
import { Finder } from "../src/panel/finder.js";
import type { Sweep } from "../src/panel/sweep.js";
import type { Transport } from "../src/panel/transport.js";
import { Watched } from "../src/panel/watched.js";
import { RUN } from "./steps.js";

const RUNNING: Sweep = {
  status: "running",
  stage: "sweeping",
  step: 12,
  settings: { min: 1e-6, max: 1, steps: 60 },
  points: [],
};

let sweep: Sweep;
let finder: Finder;
let watched: Watched;
let deleted: string[];

beforeEach(() => {
  sweep = RUNNING;
  deleted = [];
  const transport = {
    get: async () => sweep,
    delete: async (path: string) => {
      deleted.push(path);
      return { ...RUNNING, stage: "stopping" };
    },
  } as unknown as Transport;
  finder = new Finder({ transport: () => transport, change: async () => {} });
  watched = new Watched("a", transport, () => {});
  watched.run = RUN;
  document.body.replaceChildren(finder.element);
});

afterEach(() => finder.dispose());

const cancel = () =>
  [...document.querySelectorAll("button")].find(({ textContent }) => textContent === "Cancel")!;
const settled = () => new Promise((done) => setTimeout(done));

test("a button that cancels nothing says why", async () => {
  finder.show(watched, true);
  await settled();
  expect([cancel().disabled, cancel().title]).toEqual([false, ""]);
  finder.show(watched, false);
  const away = "The server does not answer, so the sweep cannot be cancelled.";
  expect([cancel().disabled, cancel().title]).toEqual([true, away]);
  expect(finder.element.querySelector(".jt-why")!.textContent).toBe(away);
  finder.show(watched, true);
  await settled();
  expect(finder.element.querySelector(".jt-why")!.textContent).toBe("");
  sweep = { ...RUNNING, stage: "stopping" };
  cancel().click();
  await settled();
  expect(deleted).toEqual(["runs/a/lr_find"]);
  expect([cancel().disabled, cancel().title]).toEqual([
    true,
    "It stops once the engine has done what it is at.",
  ]);
});
