// What a run answered, as a table: a column for each prompt, a row for each step, newest first.

import { h, say } from "./dom.js";
import { type Answer, before, columns, parted, type Round } from "./preview.js";
import type { Watched } from "./watched.js";

const PAGE = 40;
const LONG = 280; // characters, or
const TALL = 6; // lines, beyond which an answer is folded
const REPEATED = 60; // characters of a beginning that is the same, of which a folded answer shows the end

export class Answers {
  readonly element: HTMLElement;
  private readonly head = h("tr", { role: "row" });
  private readonly body = h("tbody", { role: "rowgroup" });
  private readonly scroll: HTMLElement;
  private readonly more = h("button", { type: "button", click: () => this.showMore() });
  private readonly none = h("p", { class: "jt-none" });
  private readonly rows = new Map<number, { state: string; row: HTMLElement }>();
  private readonly unfolded = new Set<string>();
  private watched: Watched | null = null;
  private prompts = "";
  private most = PAGE;

  constructor() {
    const head = h("thead", { role: "rowgroup" }, this.head);
    const table = h("table", { class: "jt-answers", role: "table" }, head, this.body);
    table.setAttribute("aria-label", "Samples by step, newest first");
    this.scroll = h(
      "div",
      { class: "jt-answers-box", role: "region", tabindex: 0, "aria-label": "Samples" },
      table,
    );
    this.element = h("div", {}, this.none, this.scroll, this.more);
  }

  /** Show what a run answered; rows that are there stay, and so does what has the focus. */
  show(watched: Watched | null): void {
    if (watched !== this.watched) {
      this.watched = watched;
      this.most = PAGE;
      this.unfolded.clear();
      this.rows.clear();
      this.body.replaceChildren();
    }
    const rounds = watched?.rounds ?? [];
    const prompts = columns(watched?.preview.prompts ?? [], rounds);
    this.showHead(prompts);
    const first = Math.max(0, rounds.length - this.most);
    const wanted: HTMLElement[] = [];
    for (let at = rounds.length - 1; at >= first; at--) wanted.push(this.row(at, prompts));
    this.forget(new Set(rounds.slice(first).map(({ id }) => id)));
    place(this.body, wanted);
    this.scroll.hidden = rounds.length === 0;
    this.none.hidden = rounds.length > 0;
    say(this.none, watched?.loading ? "Looking for samples …" : "Nothing has been sampled yet.");
    this.more.hidden = first === 0;
    say(this.more, `Show ${Math.min(PAGE, first)} older`);
  }

  private showMore(): void {
    this.most += PAGE;
    this.show(this.watched);
  }

  private showHead(prompts: readonly string[]): void {
    const state = JSON.stringify(prompts);
    if (state === this.prompts) return;
    this.prompts = state;
    const cell = (text: string) =>
      h("th", { role: "columnheader", scope: "col", title: text }, h("div", {}, text));
    this.head.replaceChildren(cell("Step"), ...prompts.map(cell));
    this.scroll.style.setProperty("--jt-prompts", String(prompts.length));
  }

  private forget(kept: ReadonlySet<number>): void {
    for (const id of this.rows.keys()) if (!kept.has(id)) this.rows.delete(id);
  }

  private row(at: number, prompts: readonly string[]): HTMLElement {
    const rounds = this.watched!.rounds;
    const round = rounds[at]!;
    const left = round.step > (this.watched!.upto.get(round.branch) ?? -1);
    const state = `${this.prompts} ${rounds[at - 1]?.id} ${left}`;
    const known = this.rows.get(round.id);
    if (known?.state === state) return known.row;
    const cells = round.error
      ? [failed(round.error, Math.max(1, prompts.length))]
      : prompts.map((prompt) => this.cell(round, prompt, before(rounds, at, prompt)));
    const row = h("tr", { role: "row" }, step(round, left), ...cells);
    if (left) row.className = "jt-left";
    this.rows.set(round.id, { state, row });
    return row;
  }

  private cell(round: Round, prompt: string, other: string | null): HTMLElement {
    const cell = h("td", { role: "cell", "data-prompt": prompt });
    const answer = round.answers.find((one) => one.prompt === prompt);
    if (!answer)
      cell.append(h("span", { class: "jt-faint", title: "It was not asked then." }, "–"));
    else if (answer.error !== null) cell.append(h("span", { class: "jt-grave" }, answer.error));
    else this.fill(cell, answer, other, `${round.id} ${prompt}`);
    return cell;
  }

  private fill(cell: HTMLElement, answer: Answer, other: string | null, key: string): void {
    // Blank lines alone would be a hole in the table.
    const text = answer.text?.trim() ? answer.text : "";
    const [same, rest] = parted(text, other);
    const repeated = h("span", { class: "jt-faint" });
    const said = h("div", { class: "jt-answer" }, repeated, rest);
    if (text === "") said.append(h("span", { class: "jt-faint" }, "(blank)"));
    if (answer.end === "length") said.append(cut(answer.tokens));
    cell.append(said);
    const folds = text.length > LONG || text.split("\n").length > TALL;
    const show = (whole: boolean) => {
      const short = !whole && rest !== "" && same.length > REPEATED;
      say(repeated, short ? `… ${same.slice(-REPEATED / 2)}` : same);
      said.dataset.folded = String(!whole);
    };
    show(!folds || this.unfolded.has(key));
    if (folds) cell.append(this.folder(key, show));
  }

  private folder(key: string, show: (whole: boolean) => void): HTMLElement {
    const button = h("button", {
      type: "button",
      class: "jt-link",
      click: () => {
        if (!this.unfolded.delete(key)) this.unfolded.add(key);
        name();
      },
    });
    const name = () => {
      const whole = this.unfolded.has(key);
      show(whole);
      say(button, whole ? "Less" : "All of it");
      button.setAttribute("aria-expanded", String(whole));
    };
    name();
    return button;
  }
}

function step(round: Round, left: boolean): HTMLElement {
  const time = new Date(round.time * 1000).toLocaleString();
  const title = `${time}${round.actor ? `, asked by ${round.actor}` : ""}`;
  const cell = h("th", { role: "rowheader", scope: "row", title }, String(round.step));
  const note = (text: string) => cell.append(h("div", { class: "jt-faint" }, text));
  if (round.branch > 0 || left) note(`branch ${round.branch}${left ? ", left" : ""}`);
  if (round.skipped > 0) note(`${round.skipped} skipped`);
  return cell;
}

function failed(why: string, columns: number): HTMLElement {
  return h("td", { role: "cell", class: "jt-grave", colspan: columns }, why);
}

function cut(tokens: number): HTMLElement {
  const why = `Cut after ${tokens} tokens.`;
  return h("span", { class: "jt-faint", title: why, "aria-label": why, role: "img" }, " ⋯");
}

/** Let a parent have these children and no others, without touching those in their places. */
function place(parent: HTMLElement, wanted: readonly HTMLElement[]): void {
  const kept = new Set<Node>(wanted);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  wanted.forEach((child, at) => {
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
  });
}
