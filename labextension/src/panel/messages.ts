// What happened, in sentences, newest first; and what just went wrong.

import { h, say } from "./dom.js";
import type { TinkerEvent } from "./types.js";
import { sentence } from "./words.js";

const MOST = 50;
const GRAVE = new Set(["guard", "engine_died", "run_ended"]);

export class Messages {
  readonly element: HTMLElement;
  private readonly fault = h("p", { class: "jt-fault", role: "alert" });
  private readonly note = h("p", { class: "jt-note", role: "status" });
  private readonly list = h("ol", { class: "jt-list", role: "log", "aria-label": "What happened" });
  private readonly summary = h("summary", {}, "What happened");
  private shown = "";

  constructor() {
    const all = h("details", { class: "jt-details", open: true }, this.summary, this.list);
    this.element = h("div", { class: "jt-messages" }, this.fault, this.note, all);
  }

  /** What a person did was refused; empty clears it. */
  fail(text: string): void {
    say(this.fault, text);
    if (text) say(this.note, "");
  }

  /** What a person did has been done. */
  tell(text: string): void {
    say(this.note, text);
  }

  show(events: readonly TinkerEvent[]): void {
    const state = `${events.length} ${events[events.length - 1]?.id} ${events[0]?.id}`;
    if (state === this.shown) return;
    this.shown = state;
    const rows: HTMLElement[] = [];
    for (let i = events.length - 1; i >= 0 && rows.length < MOST; i--) {
      const event = events[i]!;
      const text = sentence(event);
      if (!text) continue;
      const time = new Date(event.time * 1000).toLocaleTimeString();
      const row = h("li", {}, h("time", {}, time), ` ${text}`);
      if (GRAVE.has(event.kind)) row.className = "jt-grave";
      rows.push(row);
    }
    this.list.replaceChildren(...rows);
    this.element.classList.toggle("jt-quiet", rows.length === 0);
  }
}
