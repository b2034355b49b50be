// Chooses runs: the one that is steered, and those that are compared with it.

import { h, say } from "./dom.js";
import { isOwn, newestOwn } from "./following.js";
import { runColour } from "./theme.js";
import type { Run } from "./types.js";
import type { Watched } from "./watched.js";

export const MOST_RUNS = 6;
const MOST_OFFERED = 50;

export interface Choice {
  /** The run that is followed; null is whichever starts, this notebook's first. */
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

  /** `kernel` is the id of the notebook's, whose runs are its own; null if there is none. */
  constructor(
    private readonly kernel: string | null,
    private readonly choose: (choice: Choice) => void,
  ) {
    this.list.setAttribute("aria-label", "Runs to compare with");
    const compare = h("details", { class: "jt-details jt-menu" }, this.summary, this.list);
    compare.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      compare.open = false;
      this.summary.focus();
    });
    this.element = h("div", { class: "jt-picker" }, this.select, compare);
  }

  /** `drawn` are the ids of the runs in the curves, in the order of their colours. */
  show(runs: readonly Run[], choice: Choice, drawn: readonly string[]): void {
    this.choice = choice;
    const ids = runs.map(({ run_id, ended }) => [run_id, ended !== null]);
    const state = JSON.stringify([ids, choice, drawn]);
    if (state === this.shown) return;
    this.shown = state;
    this.select.replaceChildren(option("", this.following(runs)), ...this.options(runs));
    this.select.value = choice.run ?? "";
    this.select.title = choice.run ?? this.following(runs);
    this.showOthers(runs, drawn);
    const count = choice.compared.length;
    say(this.summary, count ? `Compare (${count})` : "Compare");
  }

  private showOthers(runs: readonly Run[], drawn: readonly string[]): void {
    const { activeElement } = document;
    const focused = activeElement instanceof HTMLInputElement ? activeElement.value : null;
    const rows = runs.filter((run) => run.run_id !== drawn[0]).slice(0, MOST_OFFERED);
    this.list.replaceChildren(...rows.map((run) => this.row(run, drawn)));
    if (rows.length === 0) this.list.append("There is no other run.");
    // A keyboard's place in the list stays.
    for (const box of this.list.querySelectorAll("input")) if (box.value === focused) box.focus();
  }

  /** What is shown where no run is chosen. */
  private following(runs: readonly Run[]): string {
    return newestOwn(runs, this.kernel) ? "Newest of this notebook" : "Newest of all";
  }

  private options(runs: readonly Run[]): HTMLElement[] {
    const choice = this.choice.run;
    const known = choice === null || runs.some((run) => run.run_id === choice);
    const named = (some: readonly Run[]) => some.map((run) => option(run.run_id, title(run)));
    const own = runs.filter((run) => isOwn(run, this.kernel));
    const others = named(runs.filter((run) => !own.includes(run)));
    const unknown = known ? [] : [option(choice, choice)];
    if (own.length === 0) return [...unknown, ...others];
    const groups = [h("optgroup", { label: "This notebook" }, ...named(own))];
    if (others.length) groups.push(h("optgroup", { label: "Others" }, ...others));
    return [...unknown, ...groups];
  }

  private row(run: Run, drawn: readonly string[]): HTMLElement {
    const { compared } = this.choice;
    const id = run.run_id;
    const checked = compared.includes(id);
    const full = !checked && compared.length >= MOST_RUNS - 1;
    const box = h("input", {
      type: "checkbox",
      value: id,
      checked,
      disabled: full,
      change: () => {
        const rest = compared.filter((other) => other !== id);
        this.choose({ ...this.choice, compared: checked ? rest : [...rest, id] });
      },
    });
    const place = drawn.indexOf(id);
    const dot = h("span", { class: "jt-dot" });
    if (place >= 0) dot.style.setProperty("--jt-colour", runColour(place));
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
  const today = began.toDateString() === new Date().toDateString();
  const day = today ? "" : `${began.toLocaleDateString()} `;
  const [session = "", ...rest] = run.run_id.split(":");
  return `${run.base_model} · ${day}${time} · ${session.slice(0, 8)}:${rest.join(":")}`;
}

/** What a run is called, also before the server has told of it. */
export function nameOf({ id, run }: Pick<Watched, "id" | "run">): string {
  return run ? title(run) : id;
}
