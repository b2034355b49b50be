// What else there is to see of a run, below its curves and controls: one thing at a time.

import { h } from "./dom.js";
import type { Watched } from "./watched.js";

export interface Tab {
  readonly name: string;
  readonly element: HTMLElement;
  /** What there is to show; called only while the tab is open. */
  show(watched: Watched | null, live: boolean): void;
  dispose(): void;
}

const KEYS: Record<string, number> = { ArrowRight: 1, ArrowLeft: -1 };
let made = 0;

export class Tabs {
  readonly element: HTMLElement;
  private readonly buttons: HTMLButtonElement[];
  private open = 0;
  private watched: Watched | null = null;
  private live = false;

  constructor(private readonly tabs: readonly Tab[]) {
    made += 1;
    this.buttons = tabs.map((tab, index) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          id: `jt-tab-${made}-${index}`,
          "aria-controls": `jt-tab-${made}-${index}-of`,
          click: () => this.choose(index),
          keydown: (event) => this.move(event as KeyboardEvent),
        },
        tab.name,
      ),
    );
    const pages = tabs.map((tab, index) => {
      const { id } = this.buttons[index]!;
      tab.element.id = `${id}-of`;
      tab.element.setAttribute("role", "tabpanel");
      tab.element.setAttribute("aria-labelledby", id);
      return tab.element;
    });
    const list = h("div", { class: "jt-tabs", role: "tablist" }, ...this.buttons);
    this.element = h("div", { class: "jt-tabbed" }, list, ...pages);
    this.choose(0);
  }

  show(watched: Watched | null, live: boolean): void {
    this.watched = watched;
    this.live = live;
    this.tabs[this.open]!.show(watched, live);
  }

  dispose(): void {
    for (const tab of this.tabs) tab.dispose();
  }

  private choose(index: number): void {
    this.open = index;
    this.tabs.forEach((tab, at) => {
      tab.element.hidden = at !== index;
      this.buttons[at]!.setAttribute("aria-selected", String(at === index));
      this.buttons[at]!.tabIndex = at === index ? 0 : -1;
    });
    this.show(this.watched, this.live);
  }

  private move(event: KeyboardEvent): void {
    const by = KEYS[event.key];
    if (by === undefined) return;
    const { length } = this.tabs;
    this.choose((this.open + by + length) % length);
    this.buttons[this.open]!.focus();
  }
}
