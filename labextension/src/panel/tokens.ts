// The hardest sequences of the last batches, every token shaded by its loss.

import { Batches, type Hard } from "./batches.js";
import { h, say } from "./dom.js";
import { about, counts, DARKEST, hardestOf, heading, shade, written } from "./shades.js";
import type { Tab } from "./tabs.js";
import type { Watched } from "./watched.js";
import { short } from "./words.js";

const HINT = "Point at a token, or go to one with Tab and the arrow keys, to see its numbers.";
const TO: Record<string, (at: number, count: number) => number> = {
  ArrowRight: (at, count) => Math.min(at + 1, count - 1),
  ArrowLeft: (at) => Math.max(at - 1, 0),
  Home: () => 0,
  End: (_, count) => count - 1,
};

export class Tokens implements Tab {
  readonly name = "Tokens";
  readonly element = h("div");
  private readonly picker = h("select", {
    class: "jt-select",
    change: () => this.batches.pick(this.picker.value ? Number(this.picker.value) : null),
    blur: () => this.list(),
  });
  private readonly hold = h(
    "button",
    { type: "button", "aria-pressed": "false", click: () => this.toggle() },
    "Hold",
  );
  private readonly summary = h("p", { class: "jt-none" });
  private readonly problem = h("p", { class: "jt-unshown" });
  private readonly sequences = h("div", {
    class: "jt-sequences",
    pointerover: (event) => this.tell(event),
    focusin: (event) => this.tell(event),
    pointerleave: () => this.left(),
    focusout: () => this.left(),
    keydown: (event) => this.move(event as KeyboardEvent),
  });
  private readonly about = h("p", { class: "jt-about" }, HINT);
  private readonly batches = new Batches(
    () => this.update(),
    () => this.isRead(),
    () => !this.element.hidden && !document.hidden,
  );
  private shown: unknown;
  private listed = "";
  private hard: readonly Hard[] = [];

  constructor() {
    this.element.append(
      h("div", { class: "jt-batch" }, h("label", {}, "Batch", this.picker), this.hold, legend()),
      this.summary,
      this.problem,
      this.sequences,
      this.about,
    );
    this.update();
  }

  show(watched: Watched | null, live: boolean): void {
    this.batches.show(watched, live);
    this.update();
  }

  dispose(): void {
    this.batches.dispose();
  }

  private update(): void {
    const { view, problem, picked, waits } = this.batches;
    this.list();
    this.hold.disabled = view === null;
    this.hold.title = view
      ? "Stay at this batch while the run goes on"
      : "There is no batch to hold yet";
    this.hold.setAttribute("aria-pressed", String(picked !== null));
    say(this.problem, problem ?? view?.problem ?? "");
    say(this.summary, view ? this.summarised(waits) : "No batch of this run can be shown yet.");
    const shown = view && `${view.id} ${view.hardest.length} ${view.stepped} ${view.loss_mean}`;
    if (shown === this.shown) return;
    this.shown = shown;
    this.hard = view?.hardest ?? [];
    this.sequences.replaceChildren(...this.hard.map(row));
    this.sequences.hidden = this.about.hidden = this.hard.length === 0;
    say(this.about, HINT);
  }

  private summarised(waits: boolean): string {
    const view = this.batches.view!;
    const all = view.hardest.length === view.sequences;
    return [
      `Step ${view.step}${view.branch ? ` of branch ${view.branch}` : ""}`,
      ...(view.loss_fn ? [view.loss_fn] : []),
      all
        ? "all sequences, hardest first"
        : `the ${view.hardest.length} hardest of ${view.sequences} sequences`,
      ...(view.stepped ? [] : ["its step is still to come"]),
      ...(waits ? ["a newer one comes when you leave the text"] : []),
    ].join(" · ");
  }

  /** Offer the batches there are; not while the list is open, where that would close it. */
  private list(): void {
    const { listed, picked, view } = this.batches;
    const held = picked !== null && !listed.some(({ id }) => id === picked) && view;
    const offered = held ? [...listed, held] : listed;
    const state = `${offered.map(({ id, stepped }) => `${id}${stepped}`)}`;
    if (state !== this.listed && (document.activeElement !== this.picker || !this.listed)) {
      this.listed = state;
      this.picker.replaceChildren(
        h("option", { value: "" }, "Newest, as it comes"),
        ...offered.map((batch) => h("option", { value: batch.id }, described(batch))),
      );
    }
    this.picker.value = picked === null ? "" : String(picked);
  }

  private toggle(): void {
    const { picked, view } = this.batches;
    this.batches.pick(picked === null ? (view?.id ?? null) : null);
  }

  private isRead(): boolean {
    return this.sequences.matches(":hover") || this.sequences.contains(document.activeElement);
  }

  private left(): void {
    // When the focus goes from one token to the next, it is nowhere in between.
    setTimeout(() => {
      if (this.isRead()) return;
      say(this.about, HINT);
      if (this.batches.waits) this.batches.again();
    });
  }

  private tell(event: Event): void {
    const found = this.find(event.target);
    if (found) say(this.about, about(found.hard, found.at));
  }

  private find(target: EventTarget | null): { hard: Hard; at: number; token: HTMLElement } | null {
    const token = (target as HTMLElement | null)?.closest<HTMLElement>(".jt-token");
    const hard = this.hard[Number(token?.parentElement?.dataset.sequence)];
    return token && hard ? { hard, at: Number(token.dataset.at), token } : null;
  }

  private move(event: KeyboardEvent): void {
    const to = TO[event.key];
    const found = this.find(event.target);
    const siblings = found?.token.parentElement?.children;
    if (!to || !found || !siblings) return;
    event.preventDefault();
    const next = siblings[to(found.at, siblings.length)] as HTMLElement;
    // One stop for Tab in each sequence; a click may have gone to another.
    for (const stop of found.token.parentElement!.querySelectorAll<HTMLElement>('[tabindex="0"]')) {
      stop.tabIndex = -1;
      stop.setAttribute("aria-selected", "false");
    }
    next.tabIndex = 0;
    next.setAttribute("aria-selected", "true");
    next.setAttribute("aria-label", about(found.hard, Number(next.dataset.at)));
    next.focus();
  }
}

const described = (batch: { step: number; branch: number; loss_mean: number | null }) =>
  [
    `Step ${batch.step}${batch.branch ? ` of branch ${batch.branch}` : ""}`,
    ...(batch.loss_mean === null ? [] : [`loss ${short(batch.loss_mean)}`]),
  ].join(" · ");

function row(hard: Hard, index: number): HTMLElement {
  const title = heading(hard);
  const first = hardestOf(hard);
  const special = new Set(hard.special);
  const tokens = hard.tokens.map((token, at) => {
    const kinds = [
      ...(counts(hard, at) ? [] : ["idle"]),
      ...(special.has(at) ? ["special"] : []),
      ...(hard.text ? [] : ["bare"]),
    ];
    const text = written(hard.text?.[at] ?? null, token);
    const span = shaded(text, shade(hard.logprobs?.[at]), kinds);
    span.setAttribute("role", "option");
    span.dataset.at = String(at);
    span.tabIndex = at === first ? 0 : -1;
    if (at === first) span.setAttribute("aria-label", about(hard, at));
    return span;
  });
  const text = h("div", { class: "jt-text", role: "listbox", "aria-label": title }, ...tokens);
  text.dataset.sequence = String(index);
  text.setAttribute("aria-orientation", "horizontal");
  return h("div", { class: "jt-sequence" }, h("div", {}, title), text);
}

function shaded(text: string, share: number, kinds: readonly string[] = []): HTMLElement {
  const span = h("span", { class: "jt-token" }, text);
  span.style.setProperty("--jt-t", share.toFixed(3));
  if (kinds.length > 0) span.dataset.kind = kinds.join(" ");
  return span;
}

function legend(): HTMLElement {
  const steps = Array.from({ length: DARKEST + 1 }, (_, loss) =>
    shaded(loss === DARKEST ? `${loss}+` : String(loss), shade(-loss)),
  );
  return h(
    "span",
    { class: "jt-legend" },
    h("span", {}, "Loss of a token, −log p"),
    h("span", { class: "jt-scale" }, ...steps),
    shaded("does not count", 0, ["idle"]),
    shaded("special", 0, ["special"]),
  );
}
