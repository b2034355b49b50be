// What can be done by the palette, by shortcuts and by the other parts of the extension.

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from "@jupyterlab/application";
import { ICommandPalette, Notification } from "@jupyterlab/apputils";
import { complain } from "./complain.js";
import { IDashboards } from "./dashboards.js";
import { Names } from "./names.js";
import { shortName } from "./news.js";
import { doubled, halved, RESET, said } from "./steer.js";
import { ITinker } from "./tinker.js";
import type { ListedRun } from "./types.js";

const BRIEF = { autoClose: 4_000 } as const;

type Change = (controls: ListedRun["controls"]) => Record<string, unknown>;

class Steerer {
  /** What was said last: of several changes in a row only the newest is worth a place. */
  private told = "";

  constructor(
    private readonly tinker: ITinker,
    private readonly dashboards: IDashboards,
  ) {}

  /** The run that a command is about: the one that is named, or is in view; null: the one that
   * started last. Never another in the place of one that has ended. */
  id(named?: unknown): string | null {
    return typeof named === "string" ? named : this.dashboards.current;
  }

  enabled(named?: unknown): boolean {
    return this.tinker.board.steerable(this.id(named));
  }

  paused(named?: unknown): boolean {
    const { board } = this.tinker;
    const id = this.id(named);
    const run = id === null ? board.newest : board.find(id);
    return run?.controls.paused ?? false;
  }

  /** Change its controls from what they are at the server, and say what came of it. */
  async change(named: unknown, change: Change): Promise<void> {
    const { transport, board } = this.tinker;
    try {
      const run = await board.toSteer(this.id(named));
      if (run === null) {
        Notification.info("There is no run to steer: it has ended, or none has begun.", BRIEF);
        return;
      }
      const path = `runs/${encodeURIComponent(run.run_id)}/controls`;
      const fields = change(await transport.get<ListedRun["controls"]>(path));
      const after = await transport.post<ListedRun["controls"]>(path, fields);
      // A pause is told of by its event.
      const text = said(fields, after);
      if (text) this.tell(`Run ${shortName(run.run_id)}: ${text}`);
    } catch (error) {
      complain(error);
    }
    board.refreshSoon();
  }

  private tell(text: string): void {
    if (this.told) Notification.dismiss(this.told);
    this.told = Notification.success(text, BRIEF);
  }
}

function addSteering(app: JupyterFrontEnd, tinker: ITinker, dashboards: IDashboards): void {
  const steerer = new Steerer(tinker, dashboards);
  const add = (name: string, label: string, caption: string, change: Change) =>
    app.commands.addCommand(name, {
      label,
      caption,
      isEnabled: ({ run }) => steerer.enabled(run),
      execute: ({ run }) => steerer.change(run, change),
    });
  app.commands.addCommand(Names.togglePause, {
    label: ({ run }) => (steerer.paused(run) ? "Resume the Current Run" : "Pause the Current Run"),
    caption: "The run whose dashboard is in view, else the one that started last",
    isEnabled: ({ run }) => steerer.enabled(run),
    execute: ({ run, paused: wanted }) =>
      steerer.change(run, (controls) => ({
        paused: typeof wanted === "boolean" ? wanted : !controls.paused,
      })),
  });
  add(Names.halve, "Halve the Learning Rate", "From the next optimizer step on", halved);
  add(Names.double, "Double the Learning Rate", "From the next optimizer step on", doubled);
  add(
    Names.reset,
    "Reset Learning Rate, Clipping and Weight Decay",
    "All as the run's client asks",
    () => RESET,
  );
  let shown = "";
  tinker.board.subscribe(() => {
    const now = `${steerer.id()} ${steerer.enabled()} ${steerer.paused()}`;
    if (now === shown) return;
    shown = now;
    for (const name of [Names.togglePause, Names.halve, Names.double, Names.reset]) {
      app.commands.notifyCommandChanged(name);
    }
  });
}

export const commandsPlugin: JupyterFrontEndPlugin<void> = {
  id: "jupyter-tinker:commands",
  description: "Commands that steer the current run.",
  autoStart: true,
  requires: [ITinker, IDashboards],
  optional: [ICommandPalette],
  activate: (app, tinker: ITinker, dashboards: IDashboards, palette: ICommandPalette | null) => {
    addSteering(app, tinker, dashboards);
    for (const command of Object.values(Names)) palette?.addItem({ command, category: "Tinker" });
  },
};
