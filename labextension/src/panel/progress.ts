// A slim bar below the panel's head, while something takes long that concerns the run or the engine.

import { h, say } from "./dom.js";
import type { Task } from "./types.js";
import { bytes } from "./words.js";

export class ProgressBar {
  readonly element: HTMLElement;
  private readonly text = h("span", { class: "jt-progress-text" });
  private readonly fill = h("div", { class: "jt-progress-fill" });
  private readonly bar = h(
    "div",
    { class: "jt-progress-bar", role: "progressbar", "aria-valuemin": 0 },
    this.fill,
  );

  constructor() {
    this.element = h("div", { class: "jt-progress", hidden: true }, this.text, this.bar);
  }

  /** `run` is the id of the run that is shown. */
  show(tasks: Iterable<Task>, run: string | null): void {
    const task = foremost(tasks, run);
    this.element.hidden = task === null;
    if (!task) return;
    const words = inWords(task);
    say(this.text, words);
    this.bar.setAttribute("aria-label", sentence(task.what));
    this.bar.setAttribute("aria-valuetext", words);
    this.bar.dataset.known = String(Boolean(task.total));
    if (task.total) {
      this.bar.setAttribute("aria-valuemax", String(task.total));
      this.bar.setAttribute("aria-valuenow", String(Math.min(task.done, task.total)));
      this.fill.style.width = `${Math.min(100, (100 * task.done) / task.total).toFixed(1)}%`;
    } else {
      this.bar.removeAttribute("aria-valuemax");
      this.bar.removeAttribute("aria-valuenow");
      this.fill.style.width = "";
    }
  }
}

/** Of several tasks the newest whose length is known, else the newest. */
export function foremost(tasks: Iterable<Task>, run: string | null): Task | null {
  let best: Task | null = null;
  for (const task of tasks) {
    if (task.run_id !== null && task.run_id !== run) continue;
    if (!best || task.total || !best.total) best = task;
  }
  return best;
}

export function inWords({ what, done, total, unit }: Task): string {
  if (!total) return `${sentence(what)} …`;
  const size = (count: number) => (unit === "bytes" ? bytes(count) : `${count}`);
  const noun = unit === "bytes" ? "" : ` ${unit}`;
  return `${sentence(what)}: ${size(done)} of ${size(total)}${noun}`;
}

const sentence = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);
