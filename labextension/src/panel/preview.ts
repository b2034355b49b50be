// What a run is asked while it trains, and what it answered: as values, without elements.

import type { TinkerEvent } from "./types.js";

export const MOST_PROMPTS = 5;
/** As the server keeps them. */
export const MOST_ROUNDS = 200;
const MOST_COLUMNS = 10;

/** The body of `PUT runs/{run}/preview`, and the data of a `preview_changed` event. */
export interface Preview {
  prompts: string[];
  every: number | null;
  max_tokens: number;
  temperature: number;
  seed: number;
  /** Whether prompts go into the model's chat template; null: where it has one. */
  chat: boolean | null;
}

export const NO_PREVIEW: Preview = {
  prompts: [],
  every: null,
  max_tokens: 64,
  temperature: 0,
  seed: 0,
  chat: null,
};

export interface Answer {
  prompt: string;
  text: string | null;
  tokens: number;
  end: "stop" | "length" | null;
  error: string | null;
}

/** The weights of a step, asked once: of a `preview_sampled` event. */
export interface Round {
  id: number;
  step: number;
  branch: number;
  time: number;
  /** Who asked; null where it was due. */
  actor: string | null;
  answers: Answer[];
  error: string | null;
  /** How many that were due meanwhile were skipped. */
  skipped: number;
}

export function roundOf(event: TinkerEvent): Round {
  const { id, time, actor } = event;
  return { ...(event.data as unknown as Round), id, time, actor, step: event.step ?? 0 };
}

/** Drop every other one of the older half where there are too many, as the server does. */
export function thin<T>(rounds: T[]): void {
  if (rounds.length <= MOST_ROUNDS) return;
  const half = Math.floor(rounds.length / 2);
  const kept = rounds.filter((_, at) => at >= half || at % 2 === 0);
  rounds.splice(0, rounds.length, ...kept);
}

/** The prompts to have a column each: those that are asked now first, then older ones. */
export function columns(prompts: readonly string[], rounds: readonly Round[]): string[] {
  const found = new Set(prompts);
  for (let i = rounds.length - 1; i >= 0 && found.size < MOST_COLUMNS; i--) {
    for (const { prompt } of rounds[i]!.answers) found.add(prompt);
  }
  return [...found].slice(0, MOST_COLUMNS);
}

/** What a run answered to a prompt before a round of rounds; null where it never had. */
export function before(rounds: readonly Round[], at: number, prompt: string): string | null {
  for (let i = at - 1; i >= 0; i--) {
    const answer = rounds[i]!.answers.find((one) => one.prompt === prompt);
    if (answer?.text != null) return answer.text;
  }
  return null;
}

/** A text in two: the words with which another begins, too, and the rest. */
export function parted(text: string, other: string | null): [same: string, rest: string] {
  if (other === null) return ["", text];
  if (text === other) return [text, ""];
  let same = 0;
  while (same < text.length && text[same] === other[same]) same += 1;
  while (same > 0 && !/\s/.test(text[same - 1]!)) same -= 1;
  return [text.slice(0, same), text.slice(same)];
}

/** What a person has typed, by the names of the setting. */
export interface Typed {
  prompts: string[];
  every: string;
  max_tokens: string;
  temperature: string;
}

/** The setting that is typed, or what is wrong with it. What has no field stays as it is. */
export function read(typed: Typed, known: Preview): Preview | string {
  const prompts = typed.prompts.filter((prompt) => prompt.trim() !== "");
  const every = typed.every.trim();
  if (every !== "" && !/^[1-9]\d*$/.test(every)) {
    return `Every how many steps is a whole number, or empty for on request only; “${every}” is none.`;
  }
  const tokens = typed.max_tokens.trim();
  if (!/^[1-9]\d*$/.test(tokens)) return `How many tokens is a whole number, and not “${tokens}”.`;
  const temperature = typed.temperature.trim();
  if (!/^\d*\.?\d+$/.test(temperature)) {
    return `A temperature is a number, 0 or above, and not “${temperature}”.`;
  }
  return {
    prompts,
    every: every === "" ? null : Number(every),
    max_tokens: Number(tokens),
    temperature: Number(temperature),
    seed: known.seed,
    chat: known.chat,
  };
}
