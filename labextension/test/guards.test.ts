/** @jest-environment jsdom */

import { GuardsForm, guardsInWords, RULES } from "../src/panel/guards.js";
import type { Guards } from "../src/panel/types.js";
import { RUN } from "./steps.js";

const NONE = RUN.controls.guards;
let asked: object[];
let guards: Guards;
let form: GuardsForm;

beforeEach(() => {
  asked = [];
  guards = NONE;
  form = new GuardsForm(
    async (change) => {
      asked.push(change);
      guards = { ...guards, ...change };
      form.show(guards);
    },
    (sentence) => asked.push([sentence]),
  );
  document.body.replaceChildren(form.element);
  form.show(guards);
});

const rule = (title: string) =>
  form.element.querySelector<HTMLElement>(`[role=group][aria-label="${title}"]`)!;
const box = (title: string) => rule(title).querySelector<HTMLInputElement>("[type=checkbox]")!;
const number = (label: string) =>
  form.element.querySelector<HTMLInputElement>(`input[aria-label$="${label}"]`)!;
const settled = () => new Promise((resolve) => setTimeout(resolve));

function type(field: HTMLInputElement, text: string): void {
  field.value = text;
  field.dispatchEvent(new Event("input"));
}

test("what is on is said while the form is folded", () => {
  expect(guardsInWords(NONE)).toBe("none");
  form.show({ ...NONE, non_finite: true, plateau: { min_delta: 0.01, patience: 9 } });
  expect(form.element.open).toBe(false);
  expect(form.element.querySelector("summary")!.textContent).toBe("Guards: not finite, plateau");
});

test("every rule says what it means", () => {
  for (const { title } of RULES) expect(rule(title).textContent).toContain("Pause when");
});

test("rules are turned on with the numbers that are filled in, and off", async () => {
  box("Not finite").click();
  await settled();
  type(number("how many losses are compared"), "20");
  box("Loss spike").click();
  await settled();
  box("Plateau").click();
  await settled();
  for (const title of ["Not finite", "Loss spike", "Plateau"]) {
    expect(box(title).checked).toBe(true);
    box(title).click();
    await settled();
    expect(box(title).checked).toBe(false);
  }
  expect(asked).toEqual([
    { non_finite: true },
    { loss_spike: { factor: 6, window: 20 } },
    { plateau: { patience: 200, min_delta: 0.01 } },
    { non_finite: false },
    { loss_spike: null },
    { plateau: null },
  ]);
});

test("the numbers of a rule that is on are changed", async () => {
  form.show({ ...NONE, loss_spike: { factor: 3, window: 30 } });
  const factor = number("how many times the usual spread");
  expect(factor.value).toBe("3");
  type(factor, "4");
  factor.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  await settled();
  expect(asked).toEqual([{ loss_spike: { factor: 4, window: 30 } }]);
  expect(factor.dataset.edited).toBeUndefined();
});

test("a click stays while the server is asked, and goes if it refuses", async () => {
  let answer = () => {};
  form = new GuardsForm(
    () => new Promise<void>((resolve) => (answer = resolve)),
    () => {},
  );
  document.body.replaceChildren(form.element);
  box("Not finite").click();
  form.show(NONE); // news of the run, of before the click
  expect(box("Not finite").checked).toBe(true);
  answer();
  await settled();
  expect(box("Not finite").checked).toBe(false);
});

test("a number that is none leaves the rule off", async () => {
  type(number("how many steps"), "soon");
  box("Plateau").click();
  await settled();
  expect(asked).toEqual([['Plateau: how many steps: "soon" is not a number.']]);
  expect(box("Plateau").checked).toBe(false);
});
