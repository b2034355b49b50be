// The launcher's card.

import type { JupyterFrontEndPlugin } from "@jupyterlab/application";
import { ILauncher } from "@jupyterlab/launcher";
import { IDashboards } from "./dashboards.js";
import { Names } from "./names.js";

export const launcherPlugin: JupyterFrontEndPlugin<void> = {
  id: "jupyter-tinker:launcher",
  description: "A card that opens the dashboard of runs.",
  autoStart: true,
  requires: [IDashboards],
  optional: [ILauncher],
  activate: (_app, _dashboards: IDashboards, launcher: ILauncher | null) => {
    launcher?.add({
      command: Names.dashboard,
      args: { isLauncher: true },
      category: "Tinker",
      rank: 1,
    });
    launcher?.add({ command: Names.engineNotebook, category: "Tinker", rank: 2 });
  },
};
