// The newest numbers of a run, as a row of cards.

import { h, say } from "./dom.js";
import type { Run, Status, Step } from "./types.js";
import type { Watched } from "./watched.js";
import {
  bytes,
  duration,
  remaining,
  secondsEach,
  short,
  stepNow,
  throughput,
  totalSteps,
} from "./words.js";

interface Card {
  value: string;
  /** What belongs to the value, in small letters. */
  more?: string;
}

type Cards = Record<string, (shown: Shown) => Card>;

interface Shown {
  run: Run;
  step: number;
  last: Step;
  series: Watched["series"];
  status: Status | null;
}

const of = (total: string) => (total === "–" ? "" : `of ${total}`);

const CARDS: Cards = {
  Step: ({ run, step, last }) => ({
    value: String(step),
    more: step === last.step ? of(short(totalSteps(run))) : `rewound from ${last.step}`,
  }),
  Loss: ({ last }) => ({ value: short(last.loss_mean), more: last.skipped ? "step skipped" : "" }),
  "Gradient norm": ({ last: { grad_norm, grad_clip_norm } }) => ({
    value: short(grad_norm),
    more: grad_clip_norm ? `clipped at ${short(grad_clip_norm)}` : "",
  }),
  LR: ({ last: { learning_rate, learning_rate_requested: asked } }) => ({
    value: short(learning_rate),
    more: asked !== null && asked !== learning_rate ? `asked: ${short(asked)}` : "",
  }),
  "Tokens/s": ({ series }) => ({
    value: short(Math.round(throughput(series))),
    more: each(secondsEach(series)),
  }),
  Elapsed: ({ run, last }) => ({ value: duration(last.time - run.created_at) }),
  ETA: ({ run, series, step }) => ({ value: duration(remaining(run, series, step)) }),
  Memory: ({ last, status }) => ({
    value: bytes(last.memory_bytes),
    more: of(bytes(status?.status?.memory_total_bytes ?? Number.NaN)),
  }),
};

const HINTS: Record<string, string> = {
  "Tokens/s": "Over the last 20 steps",
  Elapsed: "From the run's beginning to its newest step",
  ETA: "Until the step that the client has named as total_steps",
  Memory: "Of the engine, at its newest step, and what its device has",
};

export class Readouts {
  readonly element: HTMLElement;
  private readonly cards = new Map<
    string,
    { card: HTMLElement; value: HTMLElement; more: HTMLElement }
  >();
  private readonly bar = h("progress", { class: "jt-bar", "aria-label": "Steps made", max: 1 });

  constructor() {
    for (const name of Object.keys(CARDS)) {
      const value = h("div", { class: "jt-value" }, "–");
      const more = h("div", { class: "jt-more" });
      const called = h("div", { class: "jt-name" }, name);
      const title = HINTS[name] ?? "";
      const card = h("div", { role: "listitem", class: "jt-card", title }, called, value, more);
      this.cards.set(name, { card, value, more });
    }
    this.cards.get("Step")!.card.append(this.bar);
    this.element = h(
      "div",
      { class: "jt-readouts", role: "list", "aria-label": "Newest numbers" },
      ...[...this.cards.values()].map(({ card }) => card),
    );
  }

  show(watched: Watched | null, status: Status | null): void {
    const run = watched?.run;
    const last = run?.last_step;
    const step = watched ? stepNow(watched) : 0;
    for (const [name, { card, value, more }] of this.cards) {
      const shown =
        run && last ? CARDS[name]!({ run, step, last, series: watched.series, status }) : null;
      say(value, shown?.value ?? "–");
      say(more, shown?.more ?? "");
      if (name === "ETA") card.hidden = value.textContent === "–";
    }
    const total = run ? totalSteps(run) : Number.NaN;
    this.bar.hidden = !(total > 0);
    if (total > 0) this.bar.value = Math.min(1, step / total);
  }
}

function each(seconds: number): string {
  if (!(seconds > 0)) return "";
  return seconds < 1
    ? `${short(Math.round(1000 * seconds))} ms a step`
    : `${short(seconds)} s a step`;
}
