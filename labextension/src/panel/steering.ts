// The controls of a run: what a person turns, and what the server then says they are.

import { h, say } from "./dom.js";
import { button, disable, NumberField, row } from "./fields.js";
import { GuardsForm } from "./guards.js";
import { LearningRate } from "./learning_rate.js";
import type { Controls, Run } from "./types.js";

export interface Actions {
  change(fields: Record<string, unknown>): Promise<void>;
  rewind(step: number, branch: number | null): void;
  fork(step: number, branch: number | null): void;
  /** What a person typed makes no sense. */
  refuse(sentence: string): void;
}

/** Why a run cannot be steered now; null if it can. */
export function whyNot(run: Run | null, connected: boolean): string | null {
  if (!connected) return "The server does not answer, so nothing can be changed.";
  if (run === null) return "There is no run to steer yet.";
  if (run.ended !== null) return `The run has ended, so it cannot be steered: ${run.ended}`;
  return null;
}

/** Why there is nothing to undo; null if there is. */
export function whyNothingToUndo(controls: Controls): string | null {
  const { learning_rate_scale, learning_rate, grad_clip_norm, weight_decay } = controls;
  const asked = [learning_rate, grad_clip_norm, weight_decay].every((value) => value === null);
  return asked && learning_rate_scale === 1 && controls.ramp === null
    ? "Nothing to undo: the optimizer is given what the client asks."
    : null;
}

const UNDO = "Learning rate, clipping and weight decay as the client asks, at once";

let made = 0;

export class Steering {
  readonly element: HTMLElement;
  private readonly why = h("p", { class: "jt-why", "aria-live": "polite" });
  private readonly sets: HTMLFieldSetElement[];
  private readonly rate: LearningRate;
  private readonly clip: NumberField;
  private readonly decay: NumberField;
  private readonly steps: NumberField;
  private readonly place: NumberField;
  private readonly pause = button("Pause", () => void this.send({ paused: !this.paused }));
  private readonly undo = button("Undo all", () => void this.send({ reset: true }), UNDO);
  private readonly back: HTMLButtonElement[];
  private readonly guards: GuardsForm;
  private branch: number | null = null;
  private paused = false;
  private shown: string | null = null;

  constructor(private readonly actions: Actions) {
    const { refuse } = actions;
    this.rate = new LearningRate((fields) => this.send(fields), refuse);
    this.clip = this.field("Gradient clip norm; 0 is off", "as asked", () => this.setClip());
    this.decay = this.field("Weight decay in place of what the client asks", "as asked", () =>
      this.setDecay(),
    );
    this.steps = this.field("How many steps to make", "10", () => this.makeSteps(), true);
    this.place = this.field("Step to go back to", "step", () => this.go(actions.rewind), true);
    this.place.input.addEventListener("input", () => {
      this.branch = null;
    });
    this.back = [
      button("Rewind…", () => this.go(actions.rewind)),
      button("Fork…", () => this.go(actions.fork)),
    ];
    this.guards = new GuardsForm((guards) => this.send({ guards }), refuse);
    this.sets = [this.optimizer(), this.run()];
    made += 1;
    this.why.id = `jt-why-${made}`;
    for (const set of this.sets) set.setAttribute("aria-describedby", this.why.id);
    this.element = h("div", { class: "jt-steering" }, this.why, ...this.sets);
  }

  /** Show what is; what a person is typing stays. */
  show(run: Run | null, connected: boolean): void {
    const why = whyNot(run, connected);
    say(this.why, why ?? "");
    for (const set of this.sets) disable(set, why);
    if (run === null) return;
    if (run.run_id !== this.shown) this.startAnew(run.run_id);
    const { controls } = run;
    this.rate.show(run);
    this.clip.show(controls.grad_clip_norm);
    this.decay.show(controls.weight_decay);
    this.guards.show(controls.guards);
    this.showHalt(controls);
    disable(this.undo, whyNothingToUndo(controls), UNDO);
    const none = run.last_step ? null : "The run has made no step yet.";
    disable(this.back[0]!, none, "Set weights and optimizer back to what they were after a step");
    disable(this.back[1]!, none, "Get a path of a step, from which another run can start");
  }

  /** A step of a curve was chosen. */
  pick(step: number, branch: number): void {
    this.place.propose(String(step));
    this.branch = branch;
  }

  /** What was typed for one run is not meant for another. */
  private startAnew(run: string): void {
    this.shown = run;
    this.branch = null;
    this.rate.startAnew();
    this.guards.settle();
    for (const field of [this.clip, this.decay, this.place]) field.settle();
  }

  private optimizer(): HTMLFieldSetElement {
    return h(
      "fieldset",
      { class: "jt-controls" },
      h("legend", {}, "Optimizer"),
      ...this.rate.rows,
      row("Clip", this.clip.input, ...setOrNot("clipping norm", this.clip, () => this.setClip())),
      row(
        "Weight decay",
        this.decay.input,
        ...setOrNot("weight decay", this.decay, () => this.setDecay()),
      ),
      row("", this.undo),
    );
  }

  private run(): HTMLFieldSetElement {
    const title = "Resume, make so many optimizer steps, and pause";
    const step = button("Step", () => this.makeSteps(), title);
    return h(
      "fieldset",
      { class: "jt-controls" },
      h("legend", {}, "Run"),
      row("Go on", this.pause, step, this.steps.input),
      row("Go back to", this.place.input, ...this.back),
      this.guards.element,
    );
  }

  private showHalt({ paused, steps_until_pause: left }: Controls): void {
    this.paused = paused;
    say(this.pause, paused ? "Resume" : `Pause${left === null ? "" : ` (${left} to go)`}`);
    this.pause.title = paused ? "Let the run go on" : "Let its client wait from the next step on";
    this.pause.classList.toggle("jt-primary", paused);
  }

  private async send(fields: Record<string, unknown>): Promise<void> {
    await this.actions.change(fields);
  }

  private setClip(): void {
    void this.override("grad_clip_norm", this.clip);
  }

  private setDecay(): void {
    void this.override("weight_decay", this.decay);
  }

  private async override(name: string, field: NumberField): Promise<void> {
    const value = field.read();
    if (value === undefined) return;
    await this.send({ [name]: value });
    field.settle();
  }

  private makeSteps(): void {
    const steps = this.steps.read();
    if (steps !== undefined) void this.send({ steps: steps ?? 10 });
  }

  private go(action: (step: number, branch: number | null) => void): void {
    const step = this.place.read();
    if (step === null) this.place.input.focus();
    else if (step !== undefined) action.call(this.actions, step, this.branch);
  }

  private field(label: string, placeholder: string, enter: () => void, local = false): NumberField {
    const { refuse } = this.actions;
    return new NumberField({ label, placeholder, enter, refuse, local });
  }
}

/** Buttons that set an override, and that take it away. */
function setOrNot(name: string, field: NumberField, set: () => void): HTMLButtonElement[] {
  const clear = () => {
    field.propose("");
    set();
  };
  return [
    button("Set", set, `Use this ${name} whatever the client asks for`),
    button("As asked", clear, `Use the ${name} that the client asks for`),
  ];
}
