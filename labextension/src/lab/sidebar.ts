// The sidebar: sections that show what the board knows, drawn only while they can be seen.

import { ILabShell, ILayoutRestorer, type JupyterFrontEndPlugin } from "@jupyterlab/application";
import { Clipboard, Dialog, showDialog } from "@jupyterlab/apputils";
import { Widget } from "@lumino/widgets";
import { h, say } from "../panel/dom.js";
import type { Board } from "./board.js";
import { EngineSection } from "./engine_section.js";
import { tinkerIcon } from "./icon.js";
import { KeysSection } from "./keys_section.js";
import { Names } from "./names.js";
import { RunsSection } from "./runs_section.js";
import type { Section } from "./section.js";
import { ITinker } from "./tinker.js";

const ID = "jupyter-tinker-sidebar";

class Sidebar extends Widget {
  private readonly problem = h("p", { class: "jp-Tinker-problem", role: "status" });
  private readonly unsubscribe: () => void;

  constructor(
    private readonly board: Board,
    private readonly sections: readonly Section[],
  ) {
    super();
    this.id = ID;
    this.addClass("jp-Tinker-sidebar");
    this.title.icon = tinkerIcon;
    this.title.caption = "Tinker: engine, runs and keys";
    this.node.setAttribute("role", "region");
    this.node.setAttribute("aria-label", "Tinker");
    this.node.tabIndex = -1;
    this.node.append(this.problem, ...sections.map(({ element }) => element));
    this.unsubscribe = board.subscribe(() => this.draw());
  }

  override dispose(): void {
    this.unsubscribe();
    for (const section of this.sections) section.dispose();
    super.dispose();
  }

  protected override onAfterShow(): void {
    this.board.refreshSoon();
    this.draw();
  }

  protected override onActivateRequest(): void {
    this.node.focus();
  }

  private draw(): void {
    if (!this.isVisible) return;
    say(this.problem, this.board.problem ?? "");
    for (const section of this.sections) section.show();
  }
}

async function confirmRevoking(name: string): Promise<boolean> {
  const { button } = await showDialog({
    title: `Revoke the key ${name}?`,
    body: "Clients that use it are refused from now on, for good.",
    buttons: [Dialog.cancelButton(), Dialog.warnButton({ label: "Revoke" })],
  });
  return button.accept;
}

export const sidebarPlugin: JupyterFrontEndPlugin<void> = {
  id: "jupyter-tinker:sidebar",
  description: "The engine, runs and keys of this server.",
  autoStart: true,
  requires: [ITinker],
  optional: [ILabShell, ILayoutRestorer],
  activate: (
    app,
    { board, transport }: ITinker,
    shell: ILabShell | null,
    restorer: ILayoutRestorer | null,
  ) => {
    const { commands } = app;
    const sidebar = new Sidebar(board, [
      new EngineSection(board, {
        notebook: () => void commands.execute(Names.engineNotebook),
        console: () => void commands.execute(Names.engineConsole),
      }),
      new RunsSection(board, {
        open: (run, compared) => void commands.execute(Names.dashboard, { run, compared }),
        pause: (run, paused) => void commands.execute(Names.togglePause, { run, paused }),
      }),
      new KeysSection(transport, {
        confirm: confirmRevoking,
        copy: (text) => Clipboard.copyToSystem(text),
      }),
    ]);
    app.shell.add(sidebar, "left", { rank: 650 });
    if (shell) restorer?.add(sidebar, ID);
    commands.addCommand(Names.sidebar, {
      label: "Show the Tinker Sidebar",
      caption: "Engine, runs and keys",
      icon: tinkerIcon,
      execute: () => app.shell.activateById(ID),
    });
  },
};
