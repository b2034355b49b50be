// What came of what a person did: that it is done, or why it was refused.

import { h, say } from "./dom.js";

export class Notices {
  readonly element: HTMLElement;
  private readonly fault = h("p", { class: "jt-fault", role: "alert" });
  private readonly note = h("p", { class: "jt-note", role: "status" });

  constructor() {
    this.element = h("div", { class: "jt-notices" }, this.fault, this.note);
  }

  fail(text: string): void {
    say(this.fault, text);
    say(this.note, "");
  }

  tell(text: string): void {
    say(this.note, text);
    say(this.fault, "");
  }

  clear(): void {
    this.tell("");
  }
}
