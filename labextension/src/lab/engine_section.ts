// The sidebar's engine: whether there is one, what it computes with, and which model it holds.

import { h, say } from "../panel/dom.js";
import type { Board } from "./board.js";
import { Frame, type Section } from "./section.js";
import { engineWord, inMemory, memoryWords } from "./words.js";

const ROWS = ["Device", "Memory", "Base model"] as const;

/** What can be opened on the engine's kernel. */
export interface EngineActions {
  notebook: () => void;
  console: () => void;
}

function button(text: string, title: string, click: () => void): HTMLElement {
  return h("button", { type: "button", class: "jp-Tinker-button", title, click }, text);
}

export class EngineSection implements Section {
  readonly element: HTMLElement;
  private readonly frame: Frame;
  private readonly values = new Map(ROWS.map((name) => [name, h("dd", {}, "–")]));
  private readonly none = h(
    "p",
    { class: "jp-Tinker-hint" },
    "The engine starts with the first run, or the first sample.",
  );
  private readonly list: HTMLElement;

  constructor(
    private readonly board: Board,
    actions: EngineActions,
  ) {
    const rows = [...this.values].flatMap(([name, value]) => [h("dt", {}, name), value]);
    this.list = h("dl", { class: "jp-Tinker-facts" }, ...rows);
    this.frame = new Frame("Engine", [
      this.list,
      this.none,
      h(
        "div",
        { class: "jp-Tinker-buttons" },
        button(
          "Notebook",
          "Open a notebook on the engine: look inside the model",
          actions.notebook,
        ),
        button("Console", "Open a console on the engine", actions.console),
      ),
    ]);
    this.element = this.frame.element;
  }

  show(): void {
    const { status, runs } = this.board;
    const engine = status?.status ?? null;
    this.frame.say(engineWord(status));
    this.element.dataset.state = status?.engine ?? "unknown";
    this.list.hidden = engine === null;
    this.none.hidden = engine !== null || status === null;
    if (engine === null) return;
    const put = (name: (typeof ROWS)[number], text: string, title = "") => {
      say(this.values.get(name)!, text);
      this.values.get(name)!.title = title;
    };
    put("Device", `${engine.device} · ${engine.dtype} · ${engine.attention}`, engine.reason);
    put("Memory", memoryWords(status, runs));
    const living = runs.filter(inMemory);
    const models = new Set([...engine.base_models, ...living.map((run) => run.base_model)]);
    put("Base model", [...models].join(", ") || "none is loaded yet");
  }

  dispose(): void {}
}
