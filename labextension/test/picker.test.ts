/** @jest-environment jsdom */

import { type Choice, MOST_RUNS, Picker, title } from "../src/panel/picker.js";
import type { Run } from "../src/panel/types.js";
import { RUN } from "./steps.js";

const KERNEL = "k";
const runs: Run[] = Array.from({ length: 8 }, (_, i) => ({
  ...RUN,
  run_id: `abcdef${i}-0000:train:${i}`,
  session_tags: i === 2 || i === 5 ? ["jupyter-kernel=k"] : [],
}));
const ids = runs.map(({ run_id }) => run_id);

let chosen: Choice[];
let picker: Picker;

beforeEach(() => {
  chosen = [];
  picker = new Picker(KERNEL, (choice) => chosen.push(choice));
  document.body.replaceChildren(picker.element);
});

const all = <T extends Element>(selector: string) => [
  ...picker.element.querySelectorAll<T>(selector),
];
const select = () => all<HTMLSelectElement>("select")[0]!;
const boxes = () => all<HTMLInputElement>("input");

test("it says what is followed, and tells this notebook's runs from others", () => {
  picker.show(runs, { run: null, compared: [] }, [ids[2]!]);
  expect(select().selectedOptions[0]!.textContent).toBe("Newest of this notebook");
  const groups = all<HTMLOptGroupElement>("optgroup").map((group) => [
    group.label,
    group.children.length,
  ]);
  expect(groups).toEqual([
    ["This notebook", 2],
    ["Others", 6],
  ]);
  const over = runs.map((run) => ({ ...run, ended: "its session has ended" }));
  picker.show(over, { run: null, compared: [] }, [ids[0]!]);
  expect(select().selectedOptions[0]!.textContent).toBe("Newest of all");
});

test("without runs of this notebook there are no groups", () => {
  const others = runs.map((run) => ({ ...run, session_tags: [] }));
  picker.show(others, { run: ids[3]!, compared: [] }, [ids[3]!]);
  expect(all("optgroup")).toHaveLength(0);
  expect(select().value).toBe(ids[3]);
  picker.show(others, { run: "gone", compared: [] }, ["gone"]);
  expect(select().value).toBe("gone");
});

test("choosing keeps what is compared", () => {
  picker.show(runs, { run: null, compared: [ids[1]!] }, [ids[2]!, ids[1]!]);
  select().value = ids[4]!;
  select().dispatchEvent(new Event("change"));
  select().value = "";
  select().dispatchEvent(new Event("change"));
  expect(chosen).toEqual([
    { run: ids[4], compared: [ids[1]] },
    { run: null, compared: [ids[1]] },
  ]);
});

test("a run is compared and no more, and the keyboard stays where it is", () => {
  picker.show(runs, { run: null, compared: [] }, [ids[2]!]);
  expect(boxes().map(({ value }) => value)).not.toContain(ids[2]);
  boxes()[1]!.focus();
  boxes()[1]!.click();
  expect(chosen).toEqual([{ run: null, compared: [ids[1]] }]);
  picker.show(runs, chosen[0]!, [ids[2]!, ids[1]!]);
  const box = document.activeElement as HTMLInputElement;
  expect([box.value, box.checked]).toEqual([ids[1], true]);
  expect(picker.element.textContent).toContain("Compare (1)");
  box.click();
  expect(chosen[1]).toEqual({ run: null, compared: [] });
});

test("each run in the curves has a colour of its own, and others have none", () => {
  const drawn = [ids[2]!, ids[0]!, ids[1]!];
  picker.show(runs, { run: null, compared: drawn.slice(1) }, drawn);
  const colours = boxes().map((box) => {
    const dot = box.parentElement!.querySelector<HTMLElement>(".jt-dot")!;
    return dot.style.getPropertyValue("--jt-colour");
  });
  expect(colours.slice(0, 2)).toEqual(["var(--jt-run-1)", "var(--jt-run-2)"]);
  expect(new Set(colours.slice(2))).toEqual(new Set([""]));
});

test("no more than six runs, and it says so", () => {
  const compared = ids.slice(1, MOST_RUNS);
  picker.show(runs, { run: ids[0]!, compared }, ids.slice(0, MOST_RUNS));
  const rest = boxes().filter(({ checked }) => !checked);
  expect(rest.map(({ disabled }) => disabled)).toEqual([true, true]);
  for (const box of rest) expect(box.parentElement!.title).toContain("At most 6 runs");
});

test("a title tells runs of one session apart", () => {
  expect(title(runs[3]!)).toContain("abcdef3-:train:3");
  const now = { ...RUN, created_at: Date.now() / 1000 };
  expect(title(now)).toMatch(/^tiny · \S/);
});
