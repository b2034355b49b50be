// The learning rate's controls: a factor on what the client asks, a value in its place, and a ramp.

import { h, say } from "./dom.js";
import { button, NumberField, row } from "./fields.js";
import { Latest } from "./latest.js";
import type { Run } from "./types.js";
import { short } from "./words.js";

const DECADES = 2; // the slider's reach, up and down

type Fields = Record<string, unknown>;

export class LearningRate {
  readonly rows: HTMLElement[];
  private readonly slider = h("input", {
    type: "range",
    min: -DECADES,
    max: DECADES,
    step: 0.01,
    class: "jt-slider",
    "aria-label": "Learning rate scale, logarithmic, from 0.01 to 100",
  });
  private readonly scale: NumberField;
  private readonly value: NumberField;
  private readonly steps: NumberField;
  private readonly ramping = h("span", { class: "jt-hint", "aria-live": "polite" });
  private readonly changes: Latest<Fields>;
  private known = 1;

  constructor(
    change: (fields: Fields) => Promise<void>,
    private readonly refuse: (sentence: string) => void,
  ) {
    const field = (label: string, placeholder: string, enter: () => void, local = false) =>
      new NumberField({ label, placeholder, enter, refuse, local });
    this.scale = field("Learning rate scale, exactly", "1", () => this.setScale());
    this.value = field("Learning rate in place of what the client asks", "as asked", () =>
      this.setValue(),
    );
    const ramp = "Steps in which a learning rate that is set from now on is reached";
    this.steps = field(ramp, "at once", () => {}, true);
    this.changes = new Latest(change, () => this.settle());
    this.slider.addEventListener("input", () => this.slid());
    this.slider.addEventListener("change", () => {
      // What the slider gives has more digits than anybody wants to read.
      this.send({ learning_rate_scale: Number((10 ** Number(this.slider.value)).toPrecision(4)) });
    });
    this.rows = [
      row(
        "LR scale",
        h("span", { class: "jt-scale" }, this.slider, ticks()),
        this.scale.input,
        button("Reset", () => this.send({ learning_rate_scale: 1 }), "As the client asks: times 1"),
      ),
      row(
        "LR",
        this.value.input,
        button("Set", () => this.setValue(), "Use this learning rate whatever the client asks for"),
        button("As asked", () => this.asAsked(), "Use the learning rate that the client asks for"),
      ),
      row("LR ramp", this.steps.input, "steps", this.ramping),
    ];
  }

  show({ controls, last_step }: Run): void {
    const { learning_rate_scale: scale, learning_rate, ramp } = controls;
    this.known = scale;
    if (this.slider.dataset.edited !== "yes") this.slider.value = String(Math.log10(scale));
    this.slider.setAttribute("aria-valuetext", `times ${short(scale)}`);
    this.scale.show(Number(scale.toPrecision(6)));
    this.value.show(learning_rate);
    const made = ramp && (last_step?.step ?? 0) - ramp.start;
    const under = ramp !== null && made !== null && made < ramp.steps;
    say(this.ramping, under ? `${Math.max(0, made)} of ${ramp.steps} made` : "");
  }

  private slid(): void {
    this.slider.dataset.edited = "yes";
    const scale = short(10 ** Number(this.slider.value));
    this.scale.propose(scale);
    this.slider.setAttribute("aria-valuetext", `times ${scale}`);
  }

  private setScale(): void {
    const scale = this.scale.read();
    if (scale === null) this.refuse("Learning rate scale: give a factor, as 0.5.");
    else if (scale !== undefined) this.send({ learning_rate_scale: scale });
  }

  private setValue(): void {
    const value = this.value.read();
    if (value !== undefined) this.send({ learning_rate: value });
  }

  private asAsked(): void {
    this.value.propose("");
    this.setValue();
  }

  private send(fields: Fields): void {
    const steps = this.steps.read();
    if (steps === undefined) return;
    this.changes.put(steps ? { ...fields, ramp_steps: steps } : fields);
  }

  /** Nothing is meant yet for the run that is shown from now on. */
  startAnew(): void {
    this.changes.drop();
    this.settle();
    this.steps.settle();
  }

  /** Show again what the server says. */
  private settle(): void {
    delete this.slider.dataset.edited;
    this.slider.value = String(Math.log10(this.known));
    this.scale.settle();
    this.value.settle();
  }
}

function ticks(): HTMLElement {
  const marks = ["0.01", "0.1", "1", "10", "100"].map((text) => h("span", {}, text));
  return h("span", { class: "jt-ticks", "aria-hidden": "true" }, ...marks);
}
