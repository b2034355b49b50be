// A part of the sidebar that can be folded away.

import { h, say } from "../panel/dom.js";

export interface Section {
  readonly element: HTMLElement;
  /** What there is to show; called only while it can be seen. */
  show(): void;
  dispose(): void;
}

/** The frame of a section; `note` beside its name says what can be said in a word. */
export class Frame {
  readonly element: HTMLDetailsElement;
  private readonly note = h("span", { class: "jp-Tinker-note" });

  constructor(name: string, content: HTMLElement[], opened: () => void = () => {}) {
    const summary = h("summary", {}, h("h2", {}, name), this.note);
    this.element = h(
      "details",
      { class: "jp-Tinker-section", open: true, toggle: () => this.element.open && opened() },
      summary,
      ...content,
    );
  }

  get open(): boolean {
    return this.element.open;
  }

  say(note: string): void {
    say(this.note, note);
  }
}
