// Notebooks and consoles on the engine's own kernel, where people look inside the model that trains.

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from "@jupyterlab/application";
import { UUID } from "@lumino/coreutils";
import { complain } from "./complain.js";
import { tinkerIcon } from "./icon.js";
import { Names } from "./names.js";
import { ITinker } from "./tinker.js";
import type { Attachable } from "./types.js";

type Shell = Pick<JupyterFrontEnd, "commands" | "serviceManager">;

/** A document's session on the engine; what opens the document by its path finds it.
 *
 * Notebook opens documents in pages of their own, to which nothing but a path can be handed on. */
async function startSession(
  { serviceManager }: Shell,
  { transport }: ITinker,
  document: { path: string; name: string; type: "notebook" | "console" },
): Promise<void> {
  const engine = await transport.post<Attachable>("engine/attach", {});
  if (engine.kernel_id === null)
    throw new Error(engine.refusal ?? "The engine cannot be attached to.");
  const kernel = { id: engine.kernel_id, name: engine.kernel_name };
  const session = await serviceManager.sessions.startNew({ ...document, kernel });
  session.dispose(); // this connection only: the session lives at the server
}

async function openNotebook(app: Shell, tinker: ITinker, folder: string): Promise<void> {
  const { path, name } = await app.serviceManager.contents.newUntitled({
    path: folder,
    type: "notebook",
  });
  try {
    await startSession(app, tinker, { path, name, type: "notebook" });
  } catch (error) {
    await app.serviceManager.contents.delete(path);
    throw error;
  }
  await app.commands.execute("docmanager:open", { path });
}

async function openConsole(app: Shell, tinker: ITinker): Promise<void> {
  const [path, name] = [`tinker-engine-${UUID.uuid4()}`, "Tinker engine"];
  await startSession(app, tinker, { path, name, type: "console" });
  await app.commands.execute("console:create", { path, name });
}

export const attachPlugin: JupyterFrontEndPlugin<void> = {
  id: "jupyter-tinker:attach",
  description: "Opens notebooks and consoles on the engine's own kernel.",
  autoStart: true,
  requires: [ITinker],
  activate: (app, tinker: ITinker) => {
    const add = (name: string, label: string, open: (folder: string) => Promise<void>) =>
      app.commands.addCommand(name, {
        label,
        caption: "On the kernel that holds the model: between two operations of its runs",
        icon: tinkerIcon,
        execute: async ({ cwd }) => {
          try {
            await open(typeof cwd === "string" ? cwd : "");
          } catch (error) {
            complain(error);
          }
        },
      });
    add(Names.engineNotebook, "Open Notebook on the Engine", (cwd) =>
      openNotebook(app, tinker, cwd),
    );
    add(Names.engineConsole, "Open Console on the Engine", () => openConsole(app, tinker));
  },
};
