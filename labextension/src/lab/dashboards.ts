// Opens dashboards, keeps count of them, and brings them back with the page.

import {
  ILabShell,
  ILayoutRestorer,
  type JupyterFrontEnd,
  type JupyterFrontEndPlugin,
} from "@jupyterlab/application";
import { WidgetTracker } from "@jupyterlab/apputils";
import { type ReadonlyPartialJSONObject, Token, UUID } from "@lumino/coreutils";
import { Dashboard } from "./dashboard.js";
import { tinkerIcon } from "./icon.js";
import { Names } from "./names.js";
import { ITinker } from "./tinker.js";

export interface IDashboards {
  /** The run of the dashboard that is in view; null where none is. */
  readonly current: string | null;
}

export const IDashboards = new Token<IDashboards>(
  "jupyter-tinker:IDashboards",
  "The dashboards of Tinker runs that are open",
);

class Dashboards implements IDashboards {
  readonly tracker = new WidgetTracker<Dashboard>({ namespace: "jupyter-tinker" });

  constructor(
    private readonly app: JupyterFrontEnd,
    private readonly tinker: ITinker,
    private readonly shell: ILabShell | null,
  ) {}

  get current(): string | null {
    const { currentWidget } = this.tracker;
    if (currentWidget?.isVisible) return currentWidget.shown;
    // A click on a tab of Notebook's brings a dashboard to the front without the focus.
    return this.tracker.find(({ isVisible }) => isVisible)?.shown ?? null;
  }

  /** Show a run, or whichever started last, beside others; one that is open already comes to the
   * front. `id` is of one that is brought back. */
  open({ run, compared, id }: ReadonlyPartialJSONObject): Dashboard {
    const choice = {
      run: typeof run === "string" ? run : null,
      compared: Array.isArray(compared) ? compared.map(String) : [],
    };
    const wanted = JSON.stringify(choice);
    const found =
      id === undefined && this.tracker.find(({ choice: own }) => JSON.stringify(own) === wanted);
    const dashboard = found || this.make(choice, id);
    this.app.shell.activateById(dashboard.id);
    return dashboard;
  }

  private make(choice: Dashboard["choice"], id: unknown): Dashboard {
    const dashboard = new Dashboard(this.tinker, choice, (own) => void this.tracker.save(own));
    dashboard.id = typeof id === "string" ? id : `tinker-dashboard-${UUID.uuid4()}`;
    // A page of Notebook holds one document, and has its other areas around that.
    for (const area of this.shell ? ["main"] : ["down", "right"]) {
      if (!dashboard.isAttached) this.app.shell.add(dashboard, area);
    }
    void this.tracker.add(dashboard);
    return dashboard;
  }
}

export const dashboardsPlugin: JupyterFrontEndPlugin<IDashboards> = {
  id: "jupyter-tinker:dashboards",
  description: "Dashboards of runs.",
  autoStart: true,
  provides: IDashboards,
  requires: [ITinker],
  optional: [ILabShell, ILayoutRestorer],
  activate: (
    app,
    tinker: ITinker,
    shell: ILabShell | null,
    restorer: ILayoutRestorer | null,
  ): IDashboards => {
    const dashboards = new Dashboards(app, tinker, shell);
    app.commands.addCommand(Names.dashboard, {
      label: ({ isLauncher }) => (isLauncher ? "Runs" : "Open the Dashboard of Runs"),
      caption: "Curves and controls of Tinker runs, also while no kernel runs",
      icon: tinkerIcon,
      execute: (args) => dashboards.open(args),
    });
    if (shell && restorer) {
      void restorer.restore(dashboards.tracker, {
        command: Names.dashboard,
        args: ({ id, choice }) => ({ id, run: choice.run, compared: [...choice.compared] }),
        name: ({ id }) => id,
      });
    }
    return dashboards;
  },
};
