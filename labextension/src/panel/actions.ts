// What a person does to a run: asked, done, and said how it went.

import { confirm } from "./confirm.js";
import type { Notices } from "./notices.js";
import type { Actions } from "./steering.js";
import type { Transport } from "./transport.js";
import type { Watched } from "./watched.js";

type Place = { step: number; branch?: number };
type Offer = "Rewind" | "Fork";

const MEANINGS: Record<Offer, string> = {
  Rewind: "Rewind: the run goes on from after this step; what came later is kept as a branch.",
  Fork: "Fork: the run is left alone, and you get a path that another run can start from.",
};

/** Of the run that `current` gives, at the time when something is done. */
export class RunActions implements Actions {
  readonly change = (fields: Record<string, unknown>) =>
    this.doing(async (watched) => {
      await this.transport.post(`${watched.path}/controls`, fields);
    });
  readonly rewind = (step: number, branch: number | null) => this.ask(step, branch, ["Rewind"]);
  readonly fork = (step: number, branch: number | null) => this.ask(step, branch, ["Fork"]);
  readonly refuse = (sentence: string) => this.notices.fail(sentence);

  constructor(
    private readonly transport: Transport,
    private readonly current: () => Watched | null,
    private readonly notices: Notices,
    /** Where dialogs open. */
    private readonly root: () => HTMLElement,
  ) {}

  /** Ask which of these is meant for a step, and do it. */
  ask(step: number, branch: number | null, offers: Offer[] = ["Rewind", "Fork"]): void {
    const place: Place = branch === null ? { step } : { step, branch };
    const acts = { Rewind: () => void this.rewound(place), Fork: () => void this.forked(place) };
    confirm(this.root(), {
      title: `Step ${step}${branch ? ` of branch ${branch}` : ""}`,
      text: offers.map((offer) => MEANINGS[offer]).join(" "),
      actions: Object.fromEntries(offers.map((offer) => [offer, acts[offer]])),
    });
  }

  private rewound(place: Place): Promise<void> {
    return this.doing(async (watched) => {
      await this.transport.post(`${watched.path}/rewind`, place);
      this.notices.tell(`The run is at step ${place.step}.`);
    }, `Going back to step ${place.step} …`);
  }

  private forked(place: Place): Promise<void> {
    return this.doing(async (watched) => {
      const { path } = await this.transport.post<{ path: string }>(`${watched.path}/fork`, place);
      this.notices.tell(`Start a run from ${path}`);
    }, `Making a checkpoint of step ${place.step} …`);
  }

  /** Do something, and say so; what the server refuses is said, too. */
  private async doing(work: (watched: Watched) => Promise<void>, about = ""): Promise<void> {
    const watched = this.current();
    if (!watched) return;
    this.notices.tell(about);
    try {
      await work(watched);
      await watched.refresh();
    } catch (error) {
      this.notices.fail(error instanceof Error ? error.message : String(error));
    }
  }
}
