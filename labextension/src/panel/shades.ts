// How a token looks: its shade, what is written for it, and what is said of it.

import type { Hard } from "./batches.js";
import { short } from "./words.js";

/** The loss, in nats, from which on all tokens are shaded alike. */
export const DARKEST = 6;

/** From 0, not shaded, to 1; equal steps of loss are equal steps to the eye. */
export function shade(logprob: number | null | undefined): number {
  if (logprob === null || logprob === undefined) return 0;
  return Math.min(Math.max(-logprob / DARKEST, 0), 1);
}

const SIGNS: Record<string, string> = { "\n": "↵\n", "\r": "␍", "\t": "⇥\t", "\u007f": "␡" };

/** A token's text with what would not be seen made visible; null: there is only its id. */
export function written(text: string | null, token: number): string {
  if (text === null) return `[${token}]`;
  if (text === "") return "◌";
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return text.replace(/[\u0000-\u001f\u007f]/g, (sign) => {
    return SIGNS[sign] ?? String.fromCharCode(0x2400 + sign.charCodeAt(0));
  });
}

/** Whether a token is one that the loss is about. */
export function counts(hard: Hard, at: number): boolean {
  return !!hard.weights[at] && typeof hard.logprobs?.[at] === "number";
}

/** All that is known of a token, in a line. */
export function about(hard: Hard, at: number): string {
  const token = hard.tokens[at]!;
  const text = hard.text?.[at];
  const logprob = hard.logprobs?.[at];
  const weight = hard.weights[at];
  const said = [text ? `${JSON.stringify(text)}, token ${token}` : `token ${token}`];
  if (text === "") said.push("part of a character that is written with a later token");
  if (hard.special.includes(at)) said.push("special");
  if (typeof logprob === "number") {
    said.push(`loss ${short(-logprob)}`, `probability ${percent(Math.exp(logprob))}`);
  } else if (hard.start + at === 0) {
    said.push("the first token, which nothing predicts");
  }
  if (typeof weight === "number") {
    said.push(weight ? `${named(hard)} ${short(weight)}` : "does not count");
  }
  const sampled = hard.sampled_logprobs?.[at];
  if (weight && typeof sampled === "number") {
    said.push(`probability when sampled ${percent(Math.exp(sampled))}`);
  }
  const added = hard.losses?.[at];
  if (weight && typeof added === "number") said.push(`adds ${short(added)} to the loss`);
  return said.join(" · ");
}

const NAMES: Record<string, string> = { advantages: "advantage", weights: "weight", mask: "mask" };
const named = (hard: Hard) => NAMES[hard.weighted_by ?? "weights"] ?? "weight";

function percent(share: number): string {
  const value = 100 * share;
  return `${value >= 0.1 ? Number(value.toPrecision(3)) : value.toExponential(1)} %`;
}

/** A sequence in a few words. */
export function heading(hard: Hard): string {
  const last = hard.start + hard.tokens.length - 1;
  const cut = hard.tokens.length < hard.length;
  return [
    `Sequence ${hard.number}`,
    hard.loss_mean === null ? "no loss" : `mean loss ${short(hard.loss_mean)}`,
    `${hard.counted} of ${hard.length} tokens count`,
    ...(cut ? [`here are tokens ${hard.start} to ${last}, where its loss is highest`] : []),
  ].join(" · ");
}

/** The place of the token with the highest loss that counts. */
export function hardestOf(hard: Hard): number {
  let best = 0;
  let most = Number.NEGATIVE_INFINITY;
  hard.tokens.forEach((_, at) => {
    const loss = -(hard.logprobs?.[at] ?? 0);
    if (counts(hard, at) && loss > most) [best, most] = [at, loss];
  });
  return best;
}
