// What a person does to a run: asked, done, and said how it went.

import { confirm } from "./confirm.js";
import type { Notices } from "./notices.js";
import { nameOf } from "./picker.js";
import type { Actions } from "./steering.js";
import type { Transport } from "./transport.js";
import type { Watched } from "./watched.js";

type Place = { step: number; branch?: number };
type Offer = "Rewind" | "Fork";

const MEANINGS: Record<Offer, string> = {
  Rewind: "Rewind: the run goes on from after this step; what came later is kept as a branch.",
  Fork: "Fork: the run is left alone, and you get a path that another run can start from.",
};

/** Of the run that `current` gives at the time when something is begun, whatever is shown later. */
export class RunActions implements Actions {
  readonly change = (fields: Record<string, unknown>) =>
    this.doing(this.current(), async ({ path }) => {
      await this.transport.post(`${path}/controls`, fields);
      return "";
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

  /** Ask which of these is meant for a step of the run that is shown now, and do it. */
  ask(step: number, branch: number | null, offers: Offer[] = ["Rewind", "Fork"]): void {
    const watched = this.current();
    if (!watched) return;
    const place: Place = branch === null ? { step } : { step, branch };
    const acts = {
      Rewind: () => void this.rewound(watched, place),
      Fork: () => void this.forked(watched, place),
    };
    confirm(this.root(), {
      title: `Step ${step}${branch ? ` of branch ${branch}` : ""}`,
      about: nameOf(watched),
      text: offers.map((offer) => MEANINGS[offer]).join(" "),
      actions: Object.fromEntries(offers.map((offer) => [offer, acts[offer]])),
    });
  }

  private rewound(watched: Watched, place: Place): Promise<void> {
    const work = async ({ path }: Watched) => {
      await this.transport.post(`${path}/rewind`, place);
      return `The run is at step ${place.step}.`;
    };
    return this.doing(watched, work, `Going back to step ${place.step} …`);
  }

  private forked(watched: Watched, place: Place): Promise<void> {
    const work = async (run: Watched) => {
      const { path } = await this.transport.post<{ path: string }>(`${run.path}/fork`, place);
      return `Start a run from ${path}`;
    };
    return this.doing(watched, work, `Making a checkpoint of step ${place.step} …`);
  }

  /**
   * Do something, and say what came of it; what the server refuses is said, too. Under another run,
   * which may be shown by then, nothing is said.
   */
  private async doing(
    watched: Watched | null,
    work: (watched: Watched) => Promise<string>,
    about = "",
  ): Promise<void> {
    if (!watched) return;
    const shown = () => this.current()?.id === watched.id;
    if (shown()) this.notices.tell(about);
    try {
      const done = await work(watched);
      if (done && shown()) this.notices.tell(done);
      if (shown()) await this.current()?.refresh();
    } catch (error) {
      if (shown()) this.notices.fail(error instanceof Error ? error.message : String(error));
    }
  }
}
