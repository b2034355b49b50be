// One run in the sidebar: what it is, how it does, and its last losses as a curve.

import { h, say } from "../panel/dom.js";
import { short } from "../panel/words.js";
import { shortName } from "./news.js";
import { Sparkline } from "./sparkline.js";
import type { ListedRun } from "./types.js";
import { ownerWords, when } from "./words.js";

export interface RowActions {
  open(run: string): void;
  pause(run: string, paused: boolean): void;
  choose(run: string, chosen: boolean): void;
}

export class RunRow {
  readonly element: HTMLElement;
  private readonly model = h("span", { class: "jp-Tinker-model" });
  private readonly name = h("button", { type: "button", class: "jp-Tinker-name" }, this.model);
  private readonly state = h("span", { class: "jp-Tinker-state" });
  private readonly sparkline = new Sparkline();
  private readonly step = h("div");
  private readonly loss = h("div");
  private readonly from = h("div", { class: "jp-Tinker-from" });
  private readonly box = h("input", { type: "checkbox" });
  private readonly pause = h("button", { type: "button", class: "jp-Tinker-small" });
  private paused = false;

  constructor(
    readonly run: string,
    private readonly actions: RowActions,
  ) {
    this.name.append(h("span", {}, ` · ${shortName(run)}`));
    this.name.title = `Open the dashboard of ${run}`;
    this.name.addEventListener("click", () => actions.open(run));
    this.pause.addEventListener("click", () => actions.pause(run, !this.paused));
    this.box.addEventListener("change", () => this.actions.choose(run, this.box.checked));
    this.box.setAttribute("aria-label", `Compare run ${shortName(run)}`);
    const head = h("div", { class: "jp-Tinker-line" }, this.box, this.name, this.state);
    const numbers = h("div", { class: "jp-Tinker-numbers" }, this.step, this.loss);
    const curve = h("div", { class: "jp-Tinker-line" }, numbers, this.pause);
    curve.prepend(this.sparkline.element);
    this.element = h("li", { class: "jp-Tinker-run", "data-run": run }, head, curve, this.from);
  }

  show(run: ListedRun, losses: readonly number[], chosen: boolean, live: boolean): void {
    say(this.model, run.base_model);
    say(this.state, run.state);
    this.state.dataset.state = run.state;
    this.state.title = run.ended ?? run.controls.paused_because ?? "";
    this.sparkline.show(losses);
    this.sparkline.element.toggleAttribute("hidden", losses.length < 2);
    const { last_step: last } = run;
    say(this.step, last ? `step ${last.step}` : "no step yet");
    say(this.loss, last ? `loss ${short(last.loss_mean)}` : "");
    const who = `${ownerWords(run.owner)} · session ${run.session_id.slice(0, 8)}`;
    say(this.from, `${when(run.created_at)} · ${who}${rank(run)}`);
    this.from.title = `Session ${run.session_id}`;
    this.box.checked = chosen;
    this.showPause(run, live);
  }

  private showPause(run: ListedRun, live: boolean): void {
    this.paused = run.controls.paused;
    this.pause.hidden = run.ended !== null;
    this.pause.disabled = !live;
    this.pause.title = live ? "" : "The server does not answer, so nothing can be changed.";
    say(this.pause, this.paused ? "Resume" : "Pause");
    this.pause.setAttribute("aria-label", `${this.pause.textContent} run ${shortName(this.run)}`);
  }
}

const rank = ({ lora }: ListedRun) => (lora?.rank ? ` · rank ${lora.rank}` : "");
