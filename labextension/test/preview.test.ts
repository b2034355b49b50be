import {
  before,
  columns,
  MOST_ROUNDS,
  NO_PREVIEW,
  type Preview,
  parted,
  type Round,
  read,
  roundOf,
  thin,
} from "../src/panel/preview.js";
import { whyMute } from "../src/panel/samples.js";
import { Watched } from "../src/panel/watched.js";
import { sentence } from "../src/panel/words.js";
import { event, RUN } from "./steps.js";

const round = (id: number, answers: Record<string, string | null>): Round => ({
  id,
  step: id,
  branch: 0,
  time: 0,
  actor: null,
  error: null,
  skipped: 0,
  answers: Object.entries(answers).map(([prompt, text]) => ({
    prompt,
    text,
    tokens: 1,
    end: "stop",
    error: null,
  })),
});

test("a column for each prompt, those that are asked now first", () => {
  const rounds = [round(1, { old: "a" }), round(2, { b: "a", a: "b" })];
  expect(columns(["a", "new"], rounds)).toEqual(["a", "new", "b", "old"]);
  expect(columns([], [])).toEqual([]);
  const many = Array.from({ length: 30 }, (_, id) => round(id, { [`p${id}`]: "" }));
  expect(columns(["a"], many)).toHaveLength(10);
  expect(columns(["a"], many)[1]).toBe("p29");
});

test("an answer is compared with the one before to the same prompt", () => {
  const rounds = [
    round(1, { a: "one" }),
    round(2, { b: "x" }),
    round(3, { a: null }),
    round(4, {}),
  ];
  expect(before(rounds, 3, "a")).toBe("one");
  expect(before(rounds, 1, "b")).toBeNull();
  expect(before(rounds, 0, "a")).toBeNull();
});

test("where two answers part, at a word", () => {
  expect(parted("The cat sat down.", "The cat sang.")).toEqual(["The cat ", "sat down."]);
  expect(parted("The cat", null)).toEqual(["", "The cat"]);
  expect(parted("The cat", "The cat")).toEqual(["The cat", ""]);
  expect(parted("cat", "car")).toEqual(["", "cat"]);
  expect(parted("The", "The cat")).toEqual(["", "The"]);
  for (const [text, other] of [
    ["", "a"],
    ["a b", ""],
    ["a  b c", "a  b d"],
  ] as const) {
    expect(parted(text, other).join("")).toBe(text);
  }
});

test("what is typed becomes a setting, and what has no field stays", () => {
  const known: Preview = { ...NO_PREVIEW, seed: 7, chat: false, ...{ changed_by: "ada" } };
  const typed = { prompts: ["Hi", " ", ""], every: " 50 ", max_tokens: "8", temperature: ".5" };
  expect(read(typed, known)).toEqual({
    prompts: ["Hi"],
    every: 50,
    max_tokens: 8,
    temperature: 0.5,
    seed: 7,
    chat: false,
  });
  expect(read({ ...typed, every: "" }, known)).toMatchObject({ every: null });
});

test.each([
  [{ every: "often" }, "often"],
  [{ every: "0" }, "whole number"],
  [{ every: "1.5" }, "whole number"],
  [{ max_tokens: "" }, "tokens"],
  [{ temperature: "hot" }, "temperature"],
  [{ temperature: "-1" }, "temperature"],
])("what is no setting is said: %j", (wrong, told) => {
  const typed = { prompts: ["Hi"], every: "5", max_tokens: "8", temperature: "0", ...wrong };
  expect(read(typed, NO_PREVIEW)).toContain(told);
});

test("of many rounds the first and the newest stay", () => {
  const ids: number[] = [];
  for (let id = 1; id <= 1000; id++) {
    ids.push(id);
    thin(ids);
    expect(ids.length).toBeLessThanOrEqual(MOST_ROUNDS);
  }
  expect(ids[0]).toBe(1);
  expect(ids.slice(-100)).toEqual(Array.from({ length: 100 }, (_, i) => 901 + i));
});

test("a run's answers are kept apart from what else happened to it", () => {
  const watched = new Watched("r", {} as never, () => {});
  const add = (one: unknown) =>
    (watched as unknown as { addEvent(e: unknown): void }).addEvent(one);
  const setting = { ...NO_PREVIEW, prompts: ["Hi"], every: 5 };
  const answers = round(0, { Hi: "there" }).answers;
  const told = [
    event(1, "preview_changed", { ...setting }),
    event(2, "preview_sampled", { branch: 1, answers, error: null, skipped: 2 }),
  ];
  told.forEach(add);
  expect(watched.preview).toEqual(setting);
  expect(watched.events.map(({ kind }) => kind)).toEqual(["preview_changed"]);
  expect(watched.rounds).toMatchObject([{ id: 2, step: 5, branch: 1, skipped: 2, answers }]);
  expect(roundOf(told[1]!)).toEqual(watched.rounds[0]);
  expect(sentence(told[0]!)).toBe("Step 5: samples of 1 prompt every 5 steps by ada");
});

test("a run that cannot be asked says why", () => {
  expect(whyMute(RUN, true)).toBeNull();
  expect(whyMute(RUN, false)).toContain("does not answer");
  expect(whyMute(null, true)).toContain("no run");
  expect(whyMute({ ...RUN, ended: "it was closed" }, true)).toContain("it was closed");
});
