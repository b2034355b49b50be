/** @jest-environment jsdom */

import "./page.js";
import { Chart } from "../src/panel/chart.js";
import { title } from "../src/panel/picker.js";
import { smooth } from "../src/panel/smooth.js";
import { viewOptions } from "../src/panel/view_options.js";
import { Watched } from "../src/panel/watched.js";
import { drawn, listening, observing, purged } from "./page.js";
import { event, RUN, step } from "./steps.js";

let chart: Chart;
let options: HTMLElement;
let picked: number[][];

beforeEach(() => {
  jest.useFakeTimers();
  picked = [];
  chart = new Chart((...place) => picked.push(place));
  options = viewOptions(chart);
  document.body.replaceChildren(chart.element, options);
  chart.runs = [watched("a")];
});

afterEach(() => {
  chart.dispose();
  expect(jest.getTimerCount()).toBe(0);
  jest.useRealTimers();
});

function watched(id: string): Watched {
  const made = new Watched(id, null as never, () => {});
  for (let number = 1; number <= 40; number++) made.series.add(step(number));
  made.run = { ...RUN, run_id: id, last_step: step(40, { loss_mean: 0.025 }) };
  return made;
}

async function redrawn() {
  chart.schedule();
  await jest.advanceTimersByTimeAsync(2_000);
  return drawn.at(-1)!;
}

const input = (type: string) => options.querySelector<HTMLInputElement>(`input[type=${type}]`)!;

test("who does not see the curves is told of them", async () => {
  const name = () => chart.element.getAttribute("aria-label");
  expect(chart.element.getAttribute("role")).toBe("img");
  expect(name()).toBe("No curves: there is no run yet.");
  await redrawn();
  const run = `${title(chart.runs[0]!.run!)}: step 40, loss 0.025`;
  const curves = "Curves of loss, gradient norm and learning rate over the steps of";
  expect(name()).toBe(`${curves} ${run}.`);
  chart.runs = [chart.runs[0]!, watched("b")];
  await redrawn();
  const other = `${title(chart.runs[1]!.run!)}: step 40, loss 0.025`;
  expect(name()).toBe(`${curves} ${run}. Compared with ${other}.`);
});

test("the slider smooths the loss", async () => {
  const slider = input("range");
  expect([slider.value, options.querySelector("output")!.textContent]).toEqual(["0.9", "0.9"]);
  const loss = chart.runs[0]!.series.column("loss");
  for (const weight of [0.9, 0.5]) {
    slider.value = String(weight);
    slider.dispatchEvent(new Event("input"));
    expect(options.querySelector("output")!.textContent).toBe(String(weight));
    const { traces } = await redrawn();
    const curve = traces.find(({ name }) => name === "loss")!;
    expect(curve.y).toEqual([...smooth(loss, weight)]);
  }
});

test("the loss has an axis that is logarithmic, or is not", async () => {
  expect((await redrawn()).layout.yaxis.type).toBe("linear");
  input("checkbox").click();
  const { layout } = await redrawn();
  expect([layout.yaxis.type, layout.yaxis2.type]).toEqual(["log", undefined]);
  input("checkbox").click();
  expect((await redrawn()).layout.yaxis.type).toBe("linear");
});

test("what was zoomed into is drawn, and 'All steps' ends that", async () => {
  const { layout, element } = await redrawn();
  expect(layout.xaxis.autorange).toBe(true);
  Object.assign(element, { layout: { xaxis: { range: [10, 20], autorange: false } } });
  listening.get("plotly_relayout")!({});
  expect((await redrawn()).layout.xaxis.range).toEqual([10, 20]);
  const all = [...options.querySelectorAll("button")].find(
    ({ textContent }) => textContent === "All steps",
  )!;
  all.click();
  const after = (await redrawn()).layout.xaxis;
  expect([after.autorange, after.range]).toEqual([true, undefined]);
});

test("what happened is a line through the curves, also that a run goes on", async () => {
  chart.runs[0]!.events.push(
    event(50, "paused", { reason: "x" }, 12),
    event(51, "resumed", {}, 30),
  );
  chart.restyle();
  const { layout } = await redrawn();
  expect(layout.shapes.map(({ x0 }: { x0: number }) => x0)).toEqual([12, 30]);
  const texts = layout.annotations.map(({ text }: { text: string }) => text);
  expect(texts).toEqual(["resumed", "paused"]);
});

test("a click on a curve is a place, one beside the run's own is none", async () => {
  await redrawn();
  const click = listening.get("plotly_click")!;
  click({ points: [{ x: 3 }] });
  click({ points: [{ x: 3 }, { x: 7, customdata: 1 }] });
  expect(picked).toEqual([[7, 1]]);
});

test("closed, it draws and observes nothing more", async () => {
  const { element } = await redrawn();
  const { length } = drawn;
  expect(observing.size).toBeGreaterThan(0);
  chart.restyle();
  chart.dispose();
  chart.restyle();
  await jest.advanceTimersByTimeAsync(5_000);
  expect([drawn.length, observing.size, listening.size]).toEqual([length, 0, 0]);
  expect(purged).toContain(element);
  expect(document.body.contains(element)).toBe(false);
});
