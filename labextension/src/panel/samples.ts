// The tab of samples: what the run is asked while it trains, and what it answered.

import { Answers } from "./answers.js";
import { h, say } from "./dom.js";
import { MOST_PROMPTS, type Preview, read } from "./preview.js";
import type { Tab } from "./tabs.js";
import type { Transport } from "./transport.js";
import type { Run } from "./types.js";
import type { Watched } from "./watched.js";

const CHAT = { auto: null, yes: true, no: false } as const;

/** Why a run cannot be asked anything now; null if it can. */
export function whyMute(run: Run | null, live: boolean): string | null {
  if (!live) return "The server does not answer, so nothing can be asked.";
  if (run === null) return "There is no run to ask yet.";
  if (run.ended !== null) return `The run has ended, so it answers no prompts: ${run.ended}`;
  return null;
}

export class Samples implements Tab {
  readonly name = "Samples";
  readonly element: HTMLElement;
  private readonly answers = new Answers();
  private readonly prompts = h("div", { class: "jt-prompts" });
  private readonly add = this.button("Add a prompt", () => this.addPrompt("")?.focus());
  private readonly every = this.input("Every how many steps; empty: on request only", "never");
  private readonly tokens = this.input("Most tokens of an answer", "64");
  private readonly temperature = this.input("Temperature; 0 takes the likeliest token", "0");
  private readonly chat = h(
    "select",
    { "aria-label": "What a prompt is", change: () => this.edit() },
    h("option", { value: "auto" }, "chat, if the model has a template"),
    h("option", { value: "yes" }, "chat"),
    h("option", { value: "no" }, "text to go on with"),
  );
  private readonly save = this.button("Save", () => void this.doing(() => this.store()));
  private readonly fields: HTMLFieldSetElement;
  private readonly why = h("p", { class: "jt-why", "aria-live": "polite" });
  private readonly fault = h("p", { class: "jt-fault", role: "alert" });
  private readonly note = h("p", { class: "jt-note", role: "status" });
  private watched: Watched | null = null;
  private shown = "";
  private edited = false;
  private edits = 0;
  /** The newest round when the run was asked, until it has answered. */
  private asked: number | null = null;

  /** `transport` is asked for when it is needed. */
  constructor(private readonly transport: () => Transport) {
    const now = this.button("Sample now", () => this.sample());
    this.fields = h(
      "fieldset",
      { class: "jt-controls jt-asks" },
      h("legend", {}, "Prompts that the run answers while it trains"),
      this.prompts,
      group("", this.add),
      group("Every", this.every, h("span", {}, "steps")),
      group("Tokens", this.tokens),
      group("Temperature", this.temperature),
      group("As", this.chat),
      group("", this.save, now),
      h("div", { class: "jt-said" }, this.fault, this.note),
    );
    this.element = h("div", {}, this.fields, this.why, this.answers.element);
  }

  show(watched: Watched | null, live: boolean): void {
    if (watched !== this.watched) {
      this.watched = watched;
      this.shown = "";
      this.edited = false;
      this.asked = null;
      this.tell("");
    }
    const why = whyMute(watched?.run ?? null, live);
    say(this.why, why ?? "");
    this.fields.disabled = why !== null;
    this.fields.title = why ?? "";
    if (!live) this.asked = null;
    if (watched && !this.edited) this.fill(watched.preview);
    this.answered();
    this.answers.show(watched);
  }

  dispose(): void {}

  private get newest(): number {
    const rounds = this.watched?.rounds ?? [];
    return rounds[rounds.length - 1]?.id ?? 0;
  }

  private answered(): void {
    if (this.asked === null) return;
    const { asked } = this;
    const own = this.watched?.rounds.find((round) => round.id > asked && round.actor !== null);
    if (!own) return;
    this.asked = null;
    this.tell(`Step ${own.step} ${own.error ? "could not answer" : "has answered"}.`);
  }

  /** Show a setting as the server has it; one that is shown is left alone, and the focus in it. */
  private fill(preview: Preview): void {
    const { prompts, every, max_tokens, temperature, chat } = preview;
    const state = JSON.stringify([prompts, every, max_tokens, temperature, chat]);
    if (state === this.shown) return;
    this.shown = state;
    this.prompts.replaceChildren();
    for (const prompt of preview.prompts) this.addPrompt(prompt);
    if (preview.prompts.length === 0) this.addPrompt("");
    this.every.value = preview.every === null ? "" : String(preview.every);
    this.tokens.value = String(preview.max_tokens);
    this.temperature.value = String(preview.temperature);
    this.chat.value = preview.chat === null ? "auto" : preview.chat ? "yes" : "no";
    this.settle();
  }

  private edit(): void {
    this.edited = true;
    this.edits += 1;
    this.shown = "";
    this.tell("");
    this.settle();
  }

  private settle(): void {
    this.save.disabled = !this.edited;
    this.save.title = this.edited ? "" : "Nothing is changed.";
    const rows = [...this.prompts.children] as HTMLElement[];
    rows.forEach((row, at) => {
      row.querySelector("textarea")!.setAttribute("aria-label", `Prompt ${at + 1}`);
      row.querySelector("button")!.setAttribute("aria-label", `Remove prompt ${at + 1}`);
    });
    const full = rows.length >= MOST_PROMPTS;
    this.add.disabled = full;
    this.add.title = full ? `There are ${MOST_PROMPTS} prompts at most.` : "";
  }

  private addPrompt(text: string): HTMLTextAreaElement {
    const area = h("textarea", {
      rows: 1,
      maxlength: 4000,
      placeholder: "What do you want to ask?",
      input: () => this.edit(),
      keydown: (event) => {
        const { key, ctrlKey, metaKey } = event as KeyboardEvent;
        if (key === "Enter" && (ctrlKey || metaKey)) this.sample();
      },
    });
    area.value = text;
    const remove = this.button("×", () => {
      const next = (row.nextElementSibling ?? row.previousElementSibling)?.querySelector(
        "textarea",
      );
      row.remove();
      this.edit();
      (next ?? this.add).focus();
    });
    remove.title = "Remove this prompt";
    const row = h("div", { class: "jt-prompt" }, area, remove);
    this.prompts.append(row);
    this.settle();
    return area;
  }

  private typed(): Preview {
    const areas = [...this.prompts.querySelectorAll("textarea")];
    const preview = read(
      {
        prompts: areas.map(({ value }) => value),
        every: this.every.value,
        max_tokens: this.tokens.value,
        temperature: this.temperature.value,
      },
      { ...this.watched!.preview, chat: CHAT[this.chat.value as keyof typeof CHAT] },
    );
    if (typeof preview === "string") throw new Error(preview);
    return preview;
  }

  private async store(): Promise<void> {
    const { watched, edits } = this;
    const preview = this.typed();
    const kept = await this.transport().put<Preview>(`${watched!.path}/preview`, preview);
    watched!.preview = kept; // before the event that tells of it
    if (watched !== this.watched || edits !== this.edits) return;
    this.edited = false;
    this.fill(kept);
    this.tell("Saved.");
  }

  private sample(): void {
    void this.doing(async () => {
      const watched = this.watched;
      const newest = this.newest;
      if (this.edited) await this.store();
      const asked = await this.transport().post<{ sampling: number | null }>(
        `${watched!.path}/preview`,
        {},
      );
      if (watched !== this.watched) return;
      this.asked = newest;
      this.tell(`Asking step ${asked.sampling ?? watched!.run?.last_step?.step ?? 0} …`);
      this.answered();
    });
  }

  /** What the server, or a look at the fields, refuses is said. */
  private async doing(work: () => Promise<void>): Promise<void> {
    if (!this.watched || this.fields.disabled) return;
    try {
      await work();
    } catch (error) {
      say(this.note, "");
      say(this.fault, error instanceof Error ? error.message : String(error));
    }
  }

  private tell(text: string): void {
    say(this.fault, "");
    say(this.note, text);
  }

  private input(name: string, placeholder: string): HTMLInputElement {
    const input = h("input", {
      type: "text",
      inputmode: "decimal",
      class: "jt-number",
      "aria-label": name,
      title: name,
      placeholder,
      input: () => this.edit(),
      keydown: (event) => {
        if ((event as KeyboardEvent).key === "Enter") void this.doing(() => this.store());
      },
    });
    return input;
  }

  private button(text: string, act: () => void): HTMLButtonElement {
    return h("button", { type: "button", click: act }, text);
  }
}

function group(name: string, ...children: HTMLElement[]): HTMLElement {
  return h("div", { class: "jt-group" }, ...(name ? [h("span", {}, name)] : []), ...children);
}
