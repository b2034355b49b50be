// Tells of what happens to runs, whichever page is open.

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from "@jupyterlab/application";
import { Notification } from "@jupyterlab/apputils";
import { Names } from "./names.js";
import { type News, Newsroom } from "./news.js";
import { ITinker } from "./tinker.js";

/** What nobody has to do anything about goes by itself. */
const BRIEF = 8_000;

function tell(app: JupyterFrontEnd, { type, text, run, resumable }: News): void {
  const actions: Notification.IAction[] = [];
  if (run !== null) {
    actions.push({
      label: "Dashboard",
      callback: () => void app.commands.execute(Names.dashboard, { run }),
    });
    if (resumable) {
      actions.push({
        label: "Resume",
        callback: () => void app.commands.execute(Names.togglePause, { run, paused: false }),
      });
    }
  }
  const grave = type === "warning" || type === "error";
  Notification.emit(text, type, { actions, autoClose: grave ? false : BRIEF });
}

export const notificationsPlugin: JupyterFrontEndPlugin<void> = {
  id: "jupyter-tinker:notifications",
  description: "Tells when a run pauses, diverges, ends, fails or is revived.",
  autoStart: true,
  requires: [ITinker],
  activate: (app, tinker: ITinker) => {
    const room = new Newsroom();
    tinker.transport.listeners.add((event) => {
      const news = room.news(event, tinker.transport.began ?? 0);
      if (news !== null && tinker.settings.notifications[news.kind]) tell(app, news);
    });
  },
};
