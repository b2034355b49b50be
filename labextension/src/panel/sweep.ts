// What the server says of a sweep over learning rates, and what people are told of it.

import { whyNot } from "./steering.js";
import type { Run } from "./types.js";
import { short } from "./words.js";

export interface SweepPoint {
  learning_rate: number;
  batch: number;
  loss: number | null;
  adjusted: number | null;
  smoothed: number | null;
}

/** `GET runs/{run}/lr_find`; without a sweep there is only the status. */
export interface Sweep {
  status: "none" | "running" | "done" | "failed" | "cancelled";
  stage?: "copying" | "measuring" | "sweeping" | "stopping" | null;
  step?: number;
  batches?: number;
  settings?: { min: number; max: number; steps: number };
  points?: SweepPoint[];
  diverged?: boolean;
  suggestion?: { learning_rate: number; steepest: number; lowest: number } | null;
  message?: string | null;
}

const STAGES = {
  copying: "Copying the run …",
  measuring: "Measuring its batches …",
  sweeping: "",
  stopping: "Stopping …",
};

/** What is suggested, with the digits that mean something. */
export function suggested(sweep: Sweep | null): number | null {
  const rate = sweep?.suggestion?.learning_rate;
  return rate === undefined ? null : Number(rate.toPrecision(2));
}

/** How far a sweep is, from 0 to 1; null where that is not known yet. */
export function progress(sweep: Sweep): number | null {
  const steps = sweep.settings?.steps;
  if (sweep.stage !== "sweeping" || !steps) return null;
  return (sweep.points?.length ?? 0) / steps;
}

/** A sweep in a sentence or two. */
export function told(sweep: Sweep): string {
  const points = sweep.points ?? [];
  if (sweep.status === "running") {
    const last = points[points.length - 1];
    const steps = `Step ${points.length} of at most ${sweep.settings?.steps}`;
    return STAGES[sweep.stage ?? "copying"] || `${steps}, at LR ${short(last?.learning_rate)}`;
  }
  const message = sweep.message ?? "";
  const rate = suggested(sweep);
  if (rate === null || !sweep.suggestion) return message;
  const { steepest, lowest } = sweep.suggestion;
  const two = (value: number) => short(Number(value.toPrecision(2)));
  let text = `After step ${sweep.step}: the loss fell fastest at ${two(steepest)} and was lowest at ${two(lowest)}`;
  if (sweep.diverged) text += `; it diverged at ${two(points[points.length - 1]!.learning_rate)}`;
  return `${text}. ${message}`.trim();
}

/** Why no sweep can be begun now; null if one can. */
export function whyNoSweep(run: Run | null, live: boolean, sweep: Sweep | null): string | null {
  if (!live) return "The server does not answer, so nothing can be begun.";
  if (run === null) return "There is no run to sweep over yet.";
  if (sweep === null) return "What was found before is being looked up.";
  if (sweep.status === "running") return "A sweep is under way; wait for it, or cancel it.";
  return null;
}

/** Why a sweep that is under way cannot be cancelled now; null if it can. */
export function whyNoCancel(live: boolean, sweep: Sweep): string | null {
  if (!live) return "The server does not answer, so the sweep cannot be cancelled.";
  if (sweep.stage === "stopping") return "It stops once the engine has done what it is at.";
  return null;
}

/** Why a suggestion cannot be used now; null if it can. */
export function whyUnused(run: Run | null, live: boolean, sweep: Sweep | null): string | null {
  const rate = suggested(sweep);
  if (rate === null) return "There is no suggestion.";
  if (run?.controls.learning_rate === rate) return "The run uses it from its next step on.";
  return whyNot(run, live);
}
