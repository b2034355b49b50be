// The controls of a run: what a person turns, and what the server then says they are.

import { h, say } from "./dom.js";
import { Latest } from "./latest.js";
import type { Controls, Run } from "./types.js";
import { short } from "./words.js";

const DECADES = 2; // the slider's reach, up and down
const INSTANT = { "aria-live": "polite" };

export interface Actions {
  change(fields: Record<string, unknown>): Promise<void>;
  rewind(step: number, branch: number | null): void;
  fork(step: number, branch: number | null): void;
}

/** Why a run cannot be steered now; null if it can. */
export function whyNot(run: Run | null, connected: boolean): string | null {
  if (!connected) return "The server does not answer, so nothing can be changed.";
  if (run === null) return "There is no run to steer yet.";
  if (run.ended !== null) return `The run has ended, so it cannot be steered: ${run.ended}`;
  return null;
}

export class Steering {
  readonly element: HTMLElement;
  private readonly why = h("p", { class: "jt-why", ...INSTANT });
  private readonly live: HTMLFieldSetElement;
  private readonly past: HTMLFieldSetElement;
  private readonly slider = h("input", {
    type: "range",
    min: -DECADES,
    max: DECADES,
    step: 0.01,
    class: "jt-slider",
    "aria-label": "Learning rate scale, logarithmic, from 0.01 to 100",
  });
  private readonly scale = this.number("Learning rate scale, exactly", "1");
  private readonly rate = this.number("Learning rate in place of what the client asks", "as asked");
  private readonly clip = this.number("Gradient clip norm; 0 is off", "as asked");
  private readonly steps = this.number("How many steps to make", "10");
  private readonly place = this.number("Step to go back to", "step");
  private readonly pause = h("button", { type: "button", click: () => this.togglePause() });
  private readonly scales = new Latest<number>(
    // What the slider gives has more digits than anybody wants to read.
    (scale) => this.actions.change({ learning_rate_scale: Number(scale.toPrecision(4)) }),
    () => this.settle(this.slider, this.scale),
  );
  private branch: number | null = null;
  private controls: Controls | null = null;

  constructor(private readonly actions: Actions) {
    this.slider.addEventListener("input", () => this.slid());
    this.slider.addEventListener("change", () => this.setScale(10 ** Number(this.slider.value)));
    this.onEnter(this.scale, () => this.setScale(Number(this.scale.value)));
    this.onEnter(this.rate, () => this.setNumber("learning_rate", this.rate));
    this.onEnter(this.clip, () => this.setNumber("grad_clip_norm", this.clip));
    this.onEnter(this.steps, () => this.makeSteps());
    this.place.addEventListener("input", () => {
      this.branch = null;
    });
    this.live = h(
      "fieldset",
      { class: "jt-controls" },
      h("legend", {}, "Steer"),
      group(
        "LR scale ×",
        this.slider,
        this.scale,
        this.button("Reset", () => this.setScale(1)),
      ),
      group("LR", this.rate, ...this.setAndClear("learning_rate", this.rate)),
      group("Clip", this.clip, ...this.setAndClear("grad_clip_norm", this.clip)),
      group(
        "",
        this.pause,
        this.button("Step", () => this.makeSteps()),
        this.steps,
      ),
    );
    this.past = h(
      "fieldset",
      { class: "jt-controls" },
      h("legend", {}, "Go back"),
      group(
        "Step",
        this.place,
        this.button("Rewind…", () => this.go(actions.rewind)),
        this.button("Fork…", () => this.go(actions.fork)),
      ),
    );
    this.element = h("div", { class: "jt-steering" }, this.live, this.past, this.why);
  }

  /** Show what is; what a person is typing stays. */
  show(run: Run | null, connected: boolean): void {
    const why = whyNot(run, connected);
    say(this.why, why ?? "");
    for (const set of [this.live, this.past]) {
      set.disabled = why !== null;
      set.title = why ?? "";
    }
    if (run) this.showControls(run.controls);
  }

  /** A step of a curve was chosen. */
  pick(step: number, branch: number): void {
    this.place.value = String(step);
    this.branch = branch;
  }

  private showControls(controls: Controls): void {
    this.controls = controls;
    const left = controls.steps_until_pause;
    const until = left === null ? "" : ` (${left} to go)`;
    say(this.pause, controls.paused ? "Resume" : `Pause${until}`);
    this.pause.title = controls.paused_because ?? "";
    const scale = controls.learning_rate_scale;
    if (!this.isEdited(this.slider)) this.slider.value = String(Math.log10(scale));
    this.slider.setAttribute("aria-valuetext", `times ${short(scale)}`);
    this.set(this.scale, short(scale));
    this.set(this.rate, controls.learning_rate);
    this.set(this.clip, controls.grad_clip_norm);
  }

  private set(input: HTMLInputElement, value: number | string | null): void {
    if (!this.isEdited(input)) input.value = value === null ? "" : String(value);
  }

  private isEdited(input: HTMLInputElement): boolean {
    return input.dataset.edited === "yes";
  }

  private slid(): void {
    this.slider.dataset.edited = "yes";
    const scale = short(10 ** Number(this.slider.value));
    this.scale.value = scale;
    this.scale.dataset.edited = "yes";
    this.slider.setAttribute("aria-valuetext", `times ${scale}`);
  }

  private setScale(scale: number): void {
    for (const input of [this.slider, this.scale]) input.dataset.edited = "yes";
    this.scales.put(scale);
  }

  private setNumber(name: string, input: HTMLInputElement): void {
    const value = input.value.trim() === "" ? null : Number(input.value);
    void this.send({ [name]: value }, input);
  }

  private togglePause(): void {
    void this.send({ paused: !this.controls?.paused });
  }

  private makeSteps(): void {
    void this.send({ steps: Number(this.steps.value || "10") });
  }

  private async send(fields: Record<string, unknown>, ...inputs: HTMLInputElement[]) {
    try {
      await this.actions.change(fields);
    } finally {
      this.settle(...inputs);
    }
  }

  /** Inputs show again what the server says. */
  private settle(...inputs: HTMLInputElement[]): void {
    for (const input of inputs) delete input.dataset.edited;
    if (this.controls) this.showControls(this.controls);
  }

  private go(action: (step: number, branch: number | null) => void): void {
    if (this.place.value.trim() === "") this.place.focus();
    else action.call(this.actions, Number(this.place.value), this.branch);
  }

  private setAndClear(name: string, input: HTMLInputElement): HTMLElement[] {
    const clear = this.button("As asked", () => {
      input.value = "";
      this.setNumber(name, input);
    });
    return [this.button("Set", () => this.setNumber(name, input)), clear];
  }

  private number(name: string, placeholder: string): HTMLInputElement {
    const input = h("input", {
      type: "text",
      inputmode: "decimal",
      class: "jt-number",
      "aria-label": name,
      title: name,
      placeholder,
    });
    input.addEventListener("input", () => {
      input.dataset.edited = "yes";
    });
    return input;
  }

  private onEnter(input: HTMLInputElement, act: () => void): void {
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") act();
      if (event.key === "Escape") delete input.dataset.edited;
    });
  }

  private button(text: string, act: () => void): HTMLButtonElement {
    return h("button", { type: "button", click: act }, text);
  }
}

function group(name: string, ...children: HTMLElement[]): HTMLElement {
  return h("div", { class: "jt-group" }, ...(name ? [h("span", {}, name)] : []), ...children);
}
