// The rules that pause a run by themselves, as sentences with numbers to fill in.

import { h, say } from "./dom.js";
import { button, NumberField } from "./fields.js";
import type { Guards } from "./types.js";

type Name = keyof Guards;
type Part = string | { number: string; label: string; value: number };

interface Rule {
  name: Name;
  title: string;
  sentence: Part[];
}

/** Their numbers are those of `%tinker guard`; the server knows what each of them may be. */
export const RULES: readonly Rule[] = [
  {
    name: "non_finite",
    title: "Not finite",
    sentence: [
      "Pause when a step is skipped because a loss, a gradient or the change of the weights is " +
        "not a finite number. (It is skipped in any case.)",
    ],
  },
  {
    name: "loss_spike",
    title: "Loss spike",
    sentence: [
      "Pause when a loss is more than",
      { number: "factor", label: "Loss spike: how many times the usual spread", value: 6 },
      "times the usual spread above the median of the last",
      { number: "window", label: "Loss spike: how many losses are compared", value: 50 },
      "losses.",
    ],
  },
  {
    name: "plateau",
    title: "Plateau",
    sentence: [
      "Pause when for",
      { number: "patience", label: "Plateau: how many steps", value: 200 },
      "steps no loss was below the best one by more than",
      { number: "min_delta", label: "Plateau: by how much the loss must fall", value: 0.01 },
      ".",
    ],
  },
];

/** The rules that are on, in words. */
export function guardsInWords(guards: Guards): string {
  const on = RULES.filter(({ name }) => guards[name]).map(({ title }) => title.toLowerCase());
  return on.length ? on.join(", ") : "none";
}

export class GuardsForm {
  readonly element: HTMLDetailsElement;
  private readonly summary = h("summary", {});
  private readonly rows: RuleRow[];

  constructor(change: (guards: object) => Promise<void>, refuse: (sentence: string) => void) {
    this.rows = RULES.map((rule) => new RuleRow(rule, change, refuse));
    this.element = h(
      "details",
      { class: "jt-details jt-guards" },
      this.summary,
      ...this.rows.map(({ element }) => element),
    );
  }

  /** Show again what the server says. */
  settle(): void {
    for (const row of this.rows) row.settle();
  }

  show(guards: Guards): void {
    say(this.summary, `Guards: ${guardsInWords(guards)}`);
    for (const row of this.rows) row.show(guards);
  }
}

class RuleRow {
  readonly element: HTMLElement;
  private readonly box: HTMLInputElement;
  private readonly set: HTMLButtonElement;
  private readonly fields = new Map<string, NumberField>();
  private on = false;
  private asking = false;

  constructor(
    private readonly rule: Rule,
    private readonly change: (guards: object) => Promise<void>,
    refuse: (sentence: string) => void,
  ) {
    this.box = h("input", { type: "checkbox", change: () => void this.send(this.box.checked) });
    this.set = button("Set", () => void this.send(true), `Set the numbers of: ${rule.title}`);
    const parts = rule.sentence.map((part) => {
      if (typeof part === "string") return ` ${part} `;
      const { label, value } = part;
      const enter = () => void this.send(true);
      const field = new NumberField({ label, placeholder: String(value), enter, refuse });
      field.show(value);
      this.fields.set(part.number, field);
      return field.input;
    });
    this.element = h(
      "div",
      { class: "jt-rule", role: "group", "aria-label": rule.title },
      h("label", {}, this.box, rule.title),
      h("div", { class: "jt-sentence" }, ...parts, this.set),
    );
  }

  show(guards: Guards): void {
    const rule = guards[this.rule.name];
    this.on = Boolean(rule);
    // What a person has just clicked stays until the server has said what came of it.
    if (!this.asking) this.box.checked = this.on;
    // A rule that is off takes its numbers along when it is turned on.
    this.set.hidden = !this.on || this.fields.size === 0;
    if (rule === null || typeof rule === "boolean") return;
    for (const [name, field] of this.fields) field.show(rule[name] ?? null);
  }

  settle(): void {
    for (const field of this.fields.values()) field.settle();
  }

  private async send(on: boolean): Promise<void> {
    const asked = on ? this.asked() : this.fields.size ? null : false;
    this.asking = true;
    try {
      if (asked !== undefined) await this.change({ [this.rule.name]: asked });
    } finally {
      this.asking = false;
      this.box.checked = this.on;
      if (asked !== undefined && this.on) this.settle();
    }
  }

  /** The rule as it is filled in; undefined if a number is none. */
  private asked(): object | true | undefined {
    if (this.fields.size === 0) return true;
    const numbers: Record<string, number> = {};
    for (const part of this.rule.sentence) {
      if (typeof part === "string") continue;
      const value = this.fields.get(part.number)!.read();
      if (value === undefined) return undefined;
      numbers[part.number] = value ?? part.value;
    }
    return numbers;
  }
}
