// What happened to a run, in sentences, newest first.

import { h } from "./dom.js";
import type { Tab } from "./tabs.js";
import type { TinkerEvent } from "./types.js";
import type { Watched } from "./watched.js";
import { sentence } from "./words.js";

const MOST = 50;
const GRAVE = new Set(["guard", "engine_died", "run_ended", "request_failed"]);

export class Happenings implements Tab {
  readonly name = "What happened";
  readonly element = h("div");
  private readonly list = h("ol", { class: "jt-list", role: "log", "aria-label": this.name });
  private readonly none = h("p", { class: "jt-none" }, "Nothing but steps yet.");
  private shown: Watched | null = null;
  private last = 0; // the newest event that was looked at

  constructor() {
    this.element.append(this.none, this.list);
  }

  /** What is there stays: a screen reader says what comes in, and no selection is lost. */
  show(watched: Watched | null): void {
    if (watched !== this.shown) {
      this.list.replaceChildren();
      this.last = 0;
    }
    this.shown = watched;
    const news = this.news(watched?.events ?? []);
    if (news.length > 0) this.list.prepend(...news);
    while (this.list.childElementCount > MOST) this.list.lastElementChild!.remove();
    this.none.hidden = this.list.childElementCount > 0;
  }

  dispose(): void {}

  /** Rows for events that were not looked at yet, the newest first. */
  private news(events: readonly TinkerEvent[]): HTMLElement[] {
    const rows: HTMLElement[] = [];
    for (let i = events.length - 1; i >= 0 && rows.length < MOST; i--) {
      const event = events[i]!;
      if (event.id <= this.last) break;
      const text = sentence(event);
      if (text) rows.push(row(event, text));
    }
    this.last = events[events.length - 1]?.id ?? this.last;
    return rows;
  }
}

function row(event: TinkerEvent, text: string): HTMLElement {
  const time = new Date(event.time * 1000).toLocaleTimeString();
  return h("li", { class: GRAVE.has(event.kind) && "jt-grave" }, h("time", {}, time), ` ${text}`);
}
