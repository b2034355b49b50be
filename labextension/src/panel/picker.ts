// Chooses runs: the one that is steered, and those that are compared with it.

import { h, say } from "./dom.js";
import { RUN_COLOURS } from "./theme.js";
import type { Run } from "./types.js";

export const MOST_RUNS = 6;

export interface Choice {
  /** The run that is followed; null is whichever started last. */
  run: string | null;
  compared: readonly string[];
}

export class Picker {
  readonly element: HTMLElement;
  private readonly select = h("select", {
    "aria-label": "Run",
    class: "jt-select",
    change: () => this.choose({ ...this.choice, run: this.select.value || null }),
  });
  private readonly list = h("div", { class: "jt-compare", role: "group" });
  private readonly summary = h("summary", {}, "Compare");
  private choice: Choice = { run: null, compared: [] };
  private shown = "";

  constructor(private readonly choose: (choice: Choice) => void) {
    this.list.setAttribute("aria-label", "Runs to compare with");
    const compare = h("details", { class: "jt-details" }, this.summary, this.list);
    this.element = h("div", { class: "jt-picker" }, this.select, compare);
  }

  /** `drawn` are the ids of the runs in the curves, in the order of their colours. */
  show(runs: readonly Run[], choice: Choice, drawn: readonly string[]): void {
    this.choice = choice;
    const state = JSON.stringify([runs.map(({ run_id }) => run_id), choice, drawn]);
    if (state === this.shown) return;
    this.shown = state;
    const known = runs.some((run) => run.run_id === choice.run);
    const others = choice.run !== null && !known ? [option(choice.run, choice.run)] : [];
    const options = runs.map((run) => option(run.run_id, title(run)));
    this.select.replaceChildren(option("", "Whichever starts last"), ...others, ...options);
    this.select.value = choice.run ?? "";
    const rows = runs.filter((run) => run.run_id !== drawn[0]).slice(0, 50);
    this.list.replaceChildren(...rows.map((run) => this.row(run, drawn)));
    if (rows.length === 0) this.list.append("There is no other run.");
    const count = choice.compared.length;
    say(this.summary, count ? `Compare (${count})` : "Compare");
  }

  private row(run: Run, drawn: readonly string[]): HTMLElement {
    const { compared } = this.choice;
    const id = run.run_id;
    const checked = compared.includes(id);
    const full = !checked && compared.length >= MOST_RUNS - 1;
    const box = h("input", {
      type: "checkbox",
      checked,
      disabled: full,
      change: () => {
        const rest = compared.filter((other) => other !== id);
        this.choose({ ...this.choice, compared: checked ? rest : [...rest, id] });
      },
    });
    const place = drawn.indexOf(id);
    const dot = h("span", { class: "jt-dot" });
    if (place >= 0) dot.style.background = RUN_COLOURS[place % RUN_COLOURS.length]!;
    const why = full ? `At most ${MOST_RUNS} runs are shown at once.` : id;
    return h("label", { title: why }, box, dot, title(run));
  }
}

function option(value: string, text: string): HTMLOptionElement {
  return h("option", { value }, text);
}

/** A run in a few words: when it began, on what, and the part of its id that tells it from others. */
export function title(run: Run): string {
  const began = new Date(run.created_at * 1000);
  const time = began.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const day = began.toDateString() === new Date().toDateString() ? "" : began.toLocaleDateString();
  const [session = "", ...rest] = run.run_id.split(":");
  return `${run.base_model} · ${day} ${time} · ${session.slice(0, 8)}:${rest.join(":")}`;
}
