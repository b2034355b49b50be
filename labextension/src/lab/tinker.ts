// What the extension's plugins share, made once for a page.

import type { JupyterFrontEndPlugin } from "@jupyterlab/application";
import { PageConfig } from "@jupyterlab/coreutils";
import { ServerConnection } from "@jupyterlab/services";
import { ISettingRegistry } from "@jupyterlab/settingregistry";
import { Token } from "@lumino/coreutils";
import { acquireFeed } from "../panel/feed.js";
import { Board } from "./board.js";
import { DEFAULTS, readSettings, type Settings } from "./settings.js";
import { LabTransport } from "./transport.js";

export const PLUGIN = "jupyter-tinker:plugin";

export interface ITinker {
  readonly transport: LabTransport;
  readonly board: Board;
  /** What the panel's `mount` takes, so that all that a page shows comes by one stream. */
  readonly baseUrl: string;
  readonly settings: Settings;
}

export const ITinker = new Token<ITinker>("jupyter-tinker:ITinker", "Tinker's server and its runs");

class Tinker implements ITinker {
  readonly transport: LabTransport;
  readonly baseUrl: string;
  readonly board: Board;
  settings = DEFAULTS;

  constructor(server: ServerConnection.ISettings) {
    this.transport = new LabTransport(server, ServerConnection.makeRequest);
    this.baseUrl = keyOf(server.baseUrl);
    const feed = acquireFeed(this.baseUrl, this.transport);
    this.board = new Board(this.transport, feed, DEFAULTS);
    this.transport.listeners.add((event) => this.board.heard(event));
  }

  configure(settings: Settings): void {
    this.settings = settings;
    this.board.configure(settings);
  }
}

/** The panels of the page's notebooks call the page's own server as the page's configuration does. */
function keyOf(serverUrl: string): string {
  const own = PageConfig.getOption("baseUrl").replace(/\/*$/, "/");
  const url = serverUrl.replace(/\/*$/, "/");
  return new URL(own, location.href).href === new URL(url, location.href).href ? own : url;
}

export const tinkerPlugin: JupyterFrontEndPlugin<ITinker> = {
  id: PLUGIN,
  description: "The runs of this server, and the extension's settings.",
  autoStart: true,
  provides: ITinker,
  optional: [ISettingRegistry],
  activate: (app, registry: ISettingRegistry | null) => {
    const tinker = new Tinker(app.serviceManager.serverSettings);
    registry
      ?.load(PLUGIN)
      .then((found) => {
        const read = () => tinker.configure(readSettings(found.composite));
        found.changed.connect(read);
        read();
      })
      .catch((error: unknown) => console.error("Tinker's settings cannot be read:", error));
    return tinker;
  },
};
