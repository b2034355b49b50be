// Which curve is whose: a line in the run's colour, its name, and the branches that it left.

import { h, say } from "./dom.js";
import { nameOf } from "./picker.js";
import { runColour } from "./theme.js";
import type { Watched } from "./watched.js";
import { short, stepNow } from "./words.js";

export interface LeftBranch {
  number: number;
  /** The last step of it that the run's state came by; null if it came by none. */
  upto: number | null;
}

/** The branches of a run whose end it is not at. */
export function leftBranches({ run, upto }: Pick<Watched, "run" | "upto">): LeftBranch[] {
  const numbers = [0, ...(run?.branches ?? []).map(({ number }) => number)];
  return numbers
    .filter((number) => upto.get(number) !== Number.POSITIVE_INFINITY)
    .map((number) => ({ number, upto: upto.get(number) ?? null }));
}

export class Legend {
  readonly element = h("ul", { class: "jt-legend", "aria-label": "Runs in the curves" });
  private entries: Entry[] = [];

  constructor(private readonly drop: (run: string) => void) {}

  /** The first of the runs is the one that is steered. */
  show(runs: readonly Watched[]): void {
    const ids = (all: readonly { id: string }[]) => all.map(({ id }) => id).join();
    if (ids(runs) !== ids(this.entries)) {
      this.entries = runs.map(({ id }, place) => new Entry(id, place, () => this.drop(id)));
      this.element.replaceChildren(...this.entries.map(({ element }) => element));
    }
    runs.forEach((watched, place) => {
      this.entries[place]!.show(watched, runs.length > 1);
    });
  }
}

class Entry {
  readonly element: HTMLElement;
  private readonly name = h("span", { class: "jt-run" });
  private readonly numbers = h("span", { class: "jt-hint" });
  private readonly dotted = h("span", { class: "jt-line jt-dotted", "aria-hidden": "true" });
  private readonly left = h("span", { class: "jt-hint" });
  private readonly drop: HTMLButtonElement;

  constructor(
    readonly id: string,
    place: number,
    drop: () => void,
  ) {
    const line = h("span", { class: "jt-line", "aria-hidden": "true" });
    this.drop = h("button", { type: "button", class: "jt-small", click: drop }, "×");
    this.drop.hidden = place === 0;
    const { name, numbers, dotted, left } = this;
    this.element = h("li", { title: id }, line, name, numbers, dotted, left, this.drop);
    this.element.style.setProperty("--jt-colour", runColour(place));
  }

  /** With other runs beside it, the entry has the run's numbers; alone they stand above. */
  show(watched: Watched, compared: boolean): void {
    const name = nameOf(watched);
    say(this.name, name);
    say(this.numbers, compared ? numbersOf(watched) : "");
    say(this.left, branchesOf(watched));
    this.dotted.hidden = this.left.hidden = this.left.textContent === "";
    this.drop.title = `Compare no more with ${name}`;
    this.drop.setAttribute("aria-label", this.drop.title);
  }
}

/** What the curves show, for who does not see them. */
export function inWords(runs: readonly Watched[]): string {
  const [main, ...others] = runs.map((run) => `${nameOf(run)}: ${numbersOf(run)}`);
  if (main === undefined) return "No curves: there is no run yet.";
  const compared = others.length ? ` Compared with ${others.join("; ")}.` : "";
  return `Curves of loss, gradient norm and learning rate over the steps of ${main}.${compared}`;
}

function numbersOf(watched: Watched): string {
  if (watched.problem) return watched.problem;
  const last = watched.run?.last_step;
  if (!last) return "no step yet";
  const step = stepNow(watched);
  return step === last.step ? `step ${step}, loss ${short(last.loss_mean)}` : `step ${step}`;
}

function branchesOf(watched: Watched): string {
  const left = leftBranches(watched);
  if (left.length > 2) return `${left.length} branches left`;
  return left
    .map(({ number, upto }) => `branch ${number} left${upto ? ` at step ${upto}` : ""}`)
    .join(", ");
}
