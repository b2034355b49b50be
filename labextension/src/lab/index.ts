// The JupyterLab extension: its plugins, each with one thing to do.

import { attachPlugin } from "./attach.js";
import { commandsPlugin } from "./commands.js";
import { dashboardsPlugin } from "./dashboards.js";
import { launcherPlugin } from "./launcher.js";
import { notificationsPlugin } from "./notifications.js";
import { sidebarPlugin } from "./sidebar.js";
import { statusPlugin } from "./status_item.js";
import { tinkerPlugin } from "./tinker.js";

export default [
  tinkerPlugin,
  dashboardsPlugin,
  sidebarPlugin,
  commandsPlugin,
  attachPlugin,
  statusPlugin,
  launcherPlugin,
  notificationsPlugin,
];
