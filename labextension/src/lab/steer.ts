// What the commands change of a run's controls.

import type { Controls } from "../panel/types.js";
import { short } from "../panel/words.js";

/** All as the client asks. */
export const RESET = { reset: true };

/** The learning rate times `factor`: that which was set, or else its scale. */
function scaled(controls: Controls, factor: number): Record<string, number> {
  return controls.learning_rate === null
    ? { learning_rate_scale: controls.learning_rate_scale * factor }
    : { learning_rate: controls.learning_rate * factor };
}

export const halved = (controls: Controls) => scaled(controls, 0.5);
export const doubled = (controls: Controls) => scaled(controls, 2);

/** What came of a change, in words; empty for what an event tells of. */
export function said(fields: Record<string, unknown>, after: Controls): string {
  if ("reset" in fields) return "learning rate, clipping and weight decay are as its client asks.";
  if ("paused" in fields) return after.paused ? "" : "it goes on.";
  return after.learning_rate === null
    ? `learning rate ×${short(after.learning_rate_scale)} from the next step on.`
    : `learning rate ${short(after.learning_rate)} from the next step on.`;
}
