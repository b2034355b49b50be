// Inputs that show what the server says, except where a person is typing.

import { h } from "./dom.js";

export interface FieldOptions {
  /** What it is, for screen readers and on hovering. */
  label: string;
  /** What it says while it is empty. */
  placeholder: string;
  /** Enter was pressed. */
  enter: () => void;
  /** Told of what is no number. */
  refuse: (sentence: string) => void;
  /** The server knows nothing of it: what is typed stays, and waits for nothing. */
  local?: boolean;
}

export class NumberField {
  readonly input: HTMLInputElement;
  private known = "";

  constructor(private readonly options: FieldOptions) {
    this.input = h("input", {
      type: "text",
      inputmode: "decimal",
      autocomplete: "off",
      class: "jt-number",
      "aria-label": options.label,
      title: options.label,
      placeholder: options.placeholder,
      input: () => this.edited(),
      keydown: (event) => this.pressed(event as KeyboardEvent),
    });
  }

  /** The number; null if the field is empty; undefined, and said so, if it is something else. */
  read(): number | null | undefined {
    const text = this.input.value.trim();
    const value = Number(text);
    const fine = text === "" || Number.isFinite(value);
    if (fine) this.input.removeAttribute("aria-invalid");
    else {
      this.input.setAttribute("aria-invalid", "true");
      this.options.refuse(`${this.options.label}: "${text.slice(0, 30)}" is not a number.`);
      this.input.focus();
      return undefined;
    }
    return text === "" ? null : value;
  }

  /** What the server says; what a person is typing stays. */
  show(value: number | string | null): void {
    this.known = value === null ? "" : String(value);
    if (this.input.dataset.edited !== "yes") this.input.value = this.known;
  }

  /** What a person means, who has not said so yet. */
  propose(value: string): void {
    this.input.value = value;
    this.edited();
  }

  /** Show again what the server says. */
  settle(): void {
    delete this.input.dataset.edited;
    this.input.removeAttribute("aria-invalid");
    this.input.value = this.known;
  }

  private edited(): void {
    if (!this.options.local) this.input.dataset.edited = "yes";
  }

  private pressed(event: KeyboardEvent): void {
    if (event.key === "Enter") {
      // Else the same press goes on to the button of a dialog that it opens.
      event.preventDefault();
      this.options.enter();
    }
    if (event.key === "Escape") this.settle();
  }
}

export function button(text: string, act: () => void, title = ""): HTMLButtonElement {
  return h("button", { type: "button", click: act, title }, text);
}

/** Disable a control, and say why; without a reason it is there, and says what it does. */
export function disable(
  control: HTMLButtonElement | HTMLFieldSetElement,
  why: string | null,
  title = "",
): void {
  control.disabled = why !== null;
  control.title = why ?? title;
}

/** A line of a form: what it is about, and the controls for it. */
export function row(name: string, ...controls: (HTMLElement | string)[]): HTMLElement {
  const label = h("span", { class: "jt-label", "aria-hidden": "true" }, name);
  const group = h("div", { class: "jt-group", role: "group", "aria-label": name }, ...controls);
  return h("div", { class: "jt-row" }, label, group);
}
