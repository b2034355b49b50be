// The status bar: the engine, and the newest run's step and loss.

import type { JupyterFrontEndPlugin } from "@jupyterlab/application";
import { IStatusBar } from "@jupyterlab/statusbar";
import { Widget } from "@lumino/widgets";
import { h, say } from "../panel/dom.js";
import { Names } from "./names.js";
import { shortName } from "./news.js";
import { ITinker } from "./tinker.js";
import { statusWords } from "./words.js";

export const statusPlugin: JupyterFrontEndPlugin<void> = {
  id: "jupyter-tinker:status",
  description: "The engine and the newest run, in the status bar.",
  autoStart: true,
  requires: [ITinker],
  optional: [IStatusBar],
  activate: (app, { board }: ITinker, bar: IStatusBar | null) => {
    if (bar === null) return;
    const button = h("button", {
      type: "button",
      class: "jp-Tinker-status",
      click: () => void app.commands.execute(Names.dashboard),
    });
    const item = new Widget({ node: h("div") });
    item.node.append(button);
    item.addClass("jp-mod-highlighted");
    const show = () => {
      say(button, `Tinker ${statusWords(board)}`);
      const run = board.newest;
      button.title = run ? `Open the dashboard of run ${shortName(run.run_id)}` : "Open dashboard";
    };
    board.subscribe(show);
    show();
    bar.registerStatusItem("jupyter-tinker:status", { item, align: "left", rank: 20 });
  },
};
