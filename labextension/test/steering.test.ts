/** @jest-environment jsdom */

import { Steering, whyNot } from "../src/panel/steering.js";
import type { Controls, Run } from "../src/panel/types.js";
import { RUN, step } from "./steps.js";

let asked: object[];
let went: unknown[][];
let refused: string[];
let steering: Steering;

beforeEach(() => {
  [asked, went, refused] = [[], [], []];
  steering = new Steering({
    change: async (fields) => {
      asked.push(fields);
    },
    rewind: (...place) => went.push(["rewind", ...place]),
    fork: (...place) => went.push(["fork", ...place]),
    refuse: (sentence) => refused.push(sentence),
  });
  document.body.replaceChildren(steering.element);
  show({});
});

const steered = (controls: Partial<Controls>): Run => ({
  ...RUN,
  last_step: step(40),
  controls: { ...RUN.controls, ...controls },
});
const show = (controls: Partial<Controls>) => steering.show(steered(controls), true);
const all = <T extends Element>(selector: string) => [
  ...steering.element.querySelectorAll<T>(selector),
];
const input = (label: string) => all<HTMLInputElement>(`input[aria-label^="${label}"]`)[0]!;
const button = (text: string, row?: string) =>
  all<HTMLButtonElement>(row ? `[role=group][aria-label="${row}"] button` : "button").find(
    (one) => one.textContent === text,
  )!;
const settled = () => new Promise((resolve) => setTimeout(resolve));

function type(label: string, text: string, key = "Enter"): void {
  const field = input(label);
  field.value = text;
  field.dispatchEvent(new Event("input"));
  const pressed = new KeyboardEvent("keydown", { key, cancelable: true });
  field.dispatchEvent(pressed);
  // An Enter that went on would press the button of the dialog that it opens.
  expect(pressed.defaultPrevented).toBe(key === "Enter");
}

test("each override is set, and left to the client again", async () => {
  type("Gradient clip norm", "0.5");
  await settled();
  button("As asked", "Clip").click();
  await settled();
  type("Weight decay", "0.01", "Tab");
  button("Set", "Weight decay").click();
  await settled();
  button("As asked", "Weight decay").click();
  expect(asked).toEqual([
    { grad_clip_norm: 0.5 },
    { grad_clip_norm: null },
    { weight_decay: 0.01 },
    { weight_decay: null },
  ]);
});

test("what is no number is said, and changes nothing", () => {
  for (const label of ["Gradient clip norm", "Weight decay", "Learning rate in place", "How many"])
    type(label, "a lot");
  type("Learning rate scale, exactly", "0,5");
  type("Learning rate scale, exactly", "");
  expect(asked).toEqual([]);
  expect(refused).toHaveLength(6);
  expect(refused[0]).toBe('Gradient clip norm; 0 is off: "a lot" is not a number.');
  expect(input("Weight decay").getAttribute("aria-invalid")).toBe("true");
});

test("what a person types stays until it is set or given up", async () => {
  type("Gradient clip norm", "0.5", "Tab");
  show({ grad_clip_norm: 2, weight_decay: 0.1 });
  expect([input("Gradient clip norm").value, input("Weight decay").value]).toEqual(["0.5", "0.1"]);
  type("Gradient clip norm", "0.5", "Escape");
  expect(input("Gradient clip norm").value).toBe("2");
  type("Gradient clip norm", "0.25");
  await settled();
  expect(input("Gradient clip norm").value).toBe("2"); // as the server has it, which refused
});

test("what was typed for one run is not meant for another", () => {
  type("Gradient clip norm", "0.5", "Tab");
  type("Steps in which", "100", "Tab");
  steering.pick(12, 1);
  steering.show({ ...steered({ grad_clip_norm: 3 }), run_id: "b" }, true);
  expect(input("Gradient clip norm").value).toBe("3");
  expect(input("Step to go back to").value).toBe("");
  button("Set", "Clip").click();
  type("Learning rate scale, exactly", "0.5");
  expect(asked).toEqual([{ grad_clip_norm: 3 }, { learning_rate_scale: 0.5 }]);
});

test("a change that waits for the one before it is not sent to another run", async () => {
  type("Learning rate scale, exactly", "0.5");
  type("Learning rate scale, exactly", "0.25");
  steering.show({ ...steered({}), run_id: "b" }, true);
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(asked).toEqual([{ learning_rate_scale: 0.5 }]);
});

test("a ramp goes along with scale and value", async () => {
  type("Steps in which", "100");
  type("Learning rate scale, exactly", "0.5");
  expect(asked).toEqual([{ learning_rate_scale: 0.5, ramp_steps: 100 }]);
});

test("without a ramp a change is at once", () => {
  type("Learning rate in place", "1e-5");
  expect(asked).toEqual([{ learning_rate: 1e-5 }]);
});

test("the slider is logarithmic, and shows what is", () => {
  const slider = all<HTMLInputElement>("input[type=range]")[0]!;
  slider.value = "-1";
  slider.dispatchEvent(new Event("input"));
  expect(input("Learning rate scale, exactly").value).toBe("0.1");
  expect(slider.getAttribute("aria-valuetext")).toBe("times 0.1");
  slider.dispatchEvent(new Event("change"));
  expect(asked).toEqual([{ learning_rate_scale: 0.1 }]);
});

test("a ramp under way says how far it is", () => {
  show({ learning_rate_scale: 0.5, ramp: { start: 30, steps: 100 } });
  expect(steering.element.textContent).toContain("10 of 100 made");
  show({ learning_rate_scale: 0.5, ramp: { start: 30, steps: 10 } });
  expect(steering.element.textContent).not.toContain("10 of 10 made");
});

test("all is undone, if there is something to undo", () => {
  expect(button("Undo all").disabled).toBe(true);
  expect(button("Undo all").title).toContain("Nothing to undo");
  for (const controls of [
    { learning_rate_scale: 0.5 },
    { learning_rate: 0 },
    { grad_clip_norm: 0 },
    { weight_decay: 0 },
    { ramp: { start: 1, steps: 9 } },
  ]) {
    show(controls);
    expect(button("Undo all").disabled).toBe(false);
  }
  button("Undo all").click();
  expect(asked).toEqual([{ reset: true }]);
});

test("pausing, and steps", () => {
  button("Pause").click();
  show({ paused: true });
  button("Resume").click();
  button("Step").click();
  type("How many", "3");
  expect(asked).toEqual([{ paused: true }, { paused: false }, { steps: 10 }, { steps: 3 }]);
  show({ steps_until_pause: 2 });
  expect(button("Pause (2 to go)")).toBeDefined();
});

test("going back needs a step", () => {
  button("Rewind…").click();
  expect(document.activeElement).toBe(input("Step to go back to"));
  steering.pick(12, 1);
  button("Rewind…").click();
  type("Step to go back to", "7", "Tab");
  button("Fork…").click();
  type("Step to go back to", "8");
  expect(went).toEqual([
    ["rewind", 12, 1],
    ["fork", 7, null],
    ["rewind", 8, null],
  ]);
  steering.show({ ...RUN, last_step: null }, true);
  expect([button("Fork…").disabled, button("Fork…").title]).toEqual([
    true,
    "The run has made no step yet.",
  ]);
});

test("a disabled control says why", () => {
  expect(whyNot(RUN, true)).toBeNull();
  expect(whyNot(RUN, false)).toContain("does not answer");
  expect(whyNot(null, true)).toContain("no run");
  const ended = { ...RUN, ended: "it was closed" };
  expect(whyNot(ended, true)).toContain("it was closed");
  steering.show(ended, true);
  for (const set of all<HTMLFieldSetElement>("fieldset")) {
    expect(set.disabled).toBe(true);
    const described = document.getElementById(set.getAttribute("aria-describedby")!)!;
    expect([set.title, described.textContent]).toEqual([whyNot(ended, true), whyNot(ended, true)]);
  }
});
