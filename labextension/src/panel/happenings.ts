// What happened to a run, in sentences, newest first.

import { h } from "./dom.js";
import type { Tab } from "./tabs.js";
import type { Watched } from "./watched.js";
import { sentence } from "./words.js";

const MOST = 50;
const GRAVE = new Set(["guard", "engine_died", "run_ended", "request_failed"]);

export class Happenings implements Tab {
  readonly name = "What happened";
  readonly element = h("div");
  private readonly list = h("ol", { class: "jt-list", role: "log", "aria-label": this.name });
  private readonly none = h("p", { class: "jt-none" }, "Nothing but steps yet.");
  private shown = "";

  constructor() {
    this.element.append(this.none, this.list);
  }

  show(watched: Watched | null): void {
    const events = watched?.events ?? [];
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
    this.none.hidden = rows.length > 0;
  }

  dispose(): void {}
}
