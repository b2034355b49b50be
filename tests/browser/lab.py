"""What a person does in JupyterLab or Notebook 7: opens a notebook, runs cells, looks."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Locator, Page, expect

from tests.servers import Server

LAB = ("-m", "jupyterlab")
NOTEBOOK = ("-m", "notebook")
# Both keep their application out of scripts' reach unless told otherwise.
CONFIG = {
    "LabApp": {"expose_app_in_browser": True},
    "JupyterNotebookApp": {"expose_app_in_browser": True},
}
# JupyterLab's question whether one wants its news would lie over the panel.
_SETTINGS = "config/lab/user-settings/@jupyterlab/apputils-extension"
_CURRENT = "window.jupyterapp.shell.currentWidget"

PANEL = """\
%load_ext jupyter_tinker
import jupyter_tinker
panel = jupyter_tinker.Panel()
panel
"""
# Keeps its kernel busy until the test's file is gone.
BUSY = """\
import pathlib, time
going = pathlib.Path({flag!r})
while going.exists():
    time.sleep(0.05)
"""
# A real loop of the SDK that holds its cell until the test's file is gone.
LOOP = """\
import pathlib, time, tinker
from tinker import types
going = pathlib.Path({flag!r})
client = tinker.ServiceClient().create_lora_training_client(base_model="tiny", rank=4, seed=1)
client = client.result() if hasattr(client, "result") else client
tokens = [(7 * i) % 384 for i in range(24)]
datum = types.Datum(
    model_input=types.ModelInput.from_ints(tokens[:-1]),
    loss_fn_inputs={{"target_tokens": tokens[1:], "weights": [1.0] * 23}},
)
while going.exists():
    done = client.forward_backward([datum], "cross_entropy")
    stepped = client.optim_step(types.AdamParams(learning_rate=1e-3, grad_clip_norm=1.0))
    done.result(), stepped.result()
    time.sleep(0.05)
print("the loop is over")
"""


def screenshot_path(name: str) -> Path | None:
    """Where to keep a screenshot: in the folder that TINKER_SCREENSHOTS names, which is made; None
    where it names none."""
    folder = os.environ.get("TINKER_SCREENSHOTS")
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    plain = re.sub(r"[^-.\w]+", "-", name)
    return Path(folder) / f"{plain}.png"


def prepare(home: Path) -> None:
    """Make a server's home ready for people who want to see nothing but their notebooks."""
    settings = home / _SETTINGS / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text('{"fetchNews": "false"}')


class Lab:
    """One page of JupyterLab, or of Notebook 7, and the notebook that is open in it."""

    def __init__(self, page: Page, server: Server, place: str = "lab") -> None:
        """`place` is "lab", or for Notebook 7 its page of files, "tree", or of a "notebook"."""
        self.page = page
        self.server = server
        self.place = place
        self.flags: list[Path] = []
        self.errors: list[str] = []  # of the page's console
        self.name = ""
        self.cells = 0
        page.on("console", self._heard)

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def open(self, *cells: str, kernel: str = "python3") -> None:
        """Open a new notebook of these cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        notebook.metadata["kernelspec"] = {"name": kernel, "display_name": kernel}
        self.open_notebook(notebook, f"{uuid.uuid4().hex[:8]}.ipynb")

    def open_notebook(self, notebook: nbformat.NotebookNode, name: str) -> None:
        """Open a notebook by a name that no other has."""
        nbformat.write(notebook, self.server.home / "root" / name)
        self.open_file(name, len(notebook.cells))

    def open_file(self, path: str, cells: int) -> None:
        """Open a notebook that is there, of so many cells."""
        self.name, self.cells = path, cells
        workspace = f"lab/workspaces/{uuid.uuid4().hex[:8]}"
        self._go(f"{workspace}/tree/{path}" if self.place == "lab" else f"notebooks/{path}")
        self._opened()

    def _go(self, path: str) -> None:
        self.page.goto(f"{self.server.root}{path}?token={self.server.token}")

    def _opened(self) -> None:
        self.page.wait_for_function(
            "name => window.jupyterapp?.shell?.currentWidget?.context?.path === name",
            arg=self.name,
        )
        self.page.evaluate(f"{_CURRENT}.sessionContext.ready")
        expect(self.page.locator(".jp-Notebook .jp-Cell")).to_have_count(self.cells)

    def complaints(self) -> list[str]:
        """Errors in the page's console that are not about the server's being asked too early."""
        return [error for error in self.errors if "Failed to load resource" not in error]

    def cells_shown(self) -> list[dict[str, Any]]:
        """The notebook's cells as the page has them, with their outputs."""
        cells: list[dict[str, Any]] = self.page.evaluate(f"{_CURRENT}.context.model.toJSON().cells")
        return cells

    def save(self) -> None:
        self.page.evaluate(f"{_CURRENT}.context.save()")

    def reload(self) -> None:
        """Load the page again; the kernel goes on."""
        self.page.reload()
        self._opened()

    def open_desk(self) -> None:
        """Open JupyterLab without a document, in a workspace of its own, or a page of Notebook."""
        if self.place == "notebook":
            self.open("1 + 1")
        else:
            self._go(f"lab/workspaces/{uuid.uuid4().hex[:8]}" if self.place == "lab" else "tree")
        self._desk_opened()

    def reload_desk(self) -> None:
        self.page.reload()
        self._desk_opened()

    def _desk_opened(self) -> None:
        self.page.wait_for_function("window.jupyterapp?.commands.hasCommand('tinker:show-sidebar')")
        self.page.wait_for_function(
            """() => {
              window.jupyterapp.restored.then(() => { window.desk = "open"; });
              return window.desk === "open";
            }"""
        )

    @property
    def workspace(self) -> dict[str, Any]:
        """What JupyterLab has kept of its layout."""
        name = self.page.url.split("/workspaces/")[1].split("?")[0].split("/")[0]
        jupyters = {"Authorization": f"token {self.server.token}"}
        kept = self.server.fetch(f"lab/api/workspaces/{name}", headers=jupyters)[1]
        data: dict[str, Any] = kept.get("data", {})
        return data

    def run_all(self) -> None:
        self.command("notebook:run-all-cells")

    def run_cell(self, number: int) -> None:
        """Run one cell; not waited for."""
        self.page.evaluate(f"number => {{ {_CURRENT}.content.activeCellIndex = number; }}", number)
        self.command("notebook:run-cell")

    def restart_kernel(self) -> None:
        self.page.evaluate(f"{_CURRENT}.sessionContext.session.kernel.restart()")

    def output(self, number: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number).locator(".jp-OutputArea")

    def command(self, name: str, **arguments: Any) -> None:
        # Not waited for: running a cell is over when the cell is.
        self.page.evaluate(
            "([name, given]) => { window.jupyterapp.commands.execute(name, given); }",
            [name, arguments],
        )

    def train(self, *panels: str, kernel: str = "python3") -> str:
        """Run a panel, or several, and a loop below; the id of its run once they show it."""
        before = len(self.runs())
        self.open(*(panels or (PANEL,)), self.loop(), kernel=kernel)
        self.run_all()
        until(lambda: len(self.runs()) > before)
        run = self.runs()[0]
        until(lambda: len(self.steps(run)) >= 5 and self.panel.count())
        until(lambda: 5 <= self.step <= self.steps(run)[-1]["step"])
        return run

    def loop(self, cell: str = LOOP) -> str:
        """A cell that trains, or does something else, for as long as the test goes on."""
        flag = self.server.home / f"going-{uuid.uuid4().hex[:8]}"
        flag.touch()
        self.flags.append(flag)
        return cell.format(flag=str(flag))

    def end_loops(self) -> None:
        for flag in self.flags:
            flag.unlink(missing_ok=True)

    def close(self) -> None:
        """End the loops and the kernels that they run in."""
        self.end_loops()
        jupyters = {"Authorization": f"token {self.server.token}"}
        for session in self.server.fetch("api/sessions", headers=jupyters)[1]:
            path = f"api/sessions/{session['id']}"
            self.server.fetch(path, method="DELETE", headers=jupyters)

    @property
    def slider(self) -> Locator:
        return self.panel.get_by_label("Learning rate scale, logarithmic, from 0.01 to 100")

    def slide(self, key: str, times: int) -> None:
        """Move the slider by an arrow key; a hundredth of a decade each time."""
        for _ in range(times):
            self.slider.press(key)

    @property
    def panel(self) -> Locator:
        return self.page.locator(".jt-panel").first

    @property
    def step(self) -> int:
        """The step that the panel says the run is at; 0 before there is one."""
        return self.step_of(self.panel)

    def step_of(self, panel: Locator) -> int:
        text = panel.locator(".jt-value").first.inner_text()
        return int(text) if text.isdecimal() else 0

    def is_busy(self) -> bool:
        """Whether the kernel runs a cell. (Its status is that of whichever of its subshells spoke
        last, and widgets have one of their own.)"""
        return "[*]:" in self.page.locator(".jp-InputPrompt").all_inner_texts()

    def runs(self) -> list[str]:
        """The server's runs, the newest first."""
        return [run["run_id"] for run in self.server.fetch("tinker/runs")[1]["runs"]]

    def steps(self, run: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.server.fetch(f"tinker/runs/{run}/steps")[1]["steps"]
        return rows

    def drawn_steps(self, panel: Locator | None = None) -> list[int]:
        """The steps on the smoothed curve of the loss, as it is drawn."""
        chart = (panel or self.panel).locator(".jt-chart")
        steps: list[int] = chart.evaluate(
            "chart => chart.data?.filter(t => t.name === 'loss').flatMap(t => t.x) ?? []"
        )
        return steps

    def screenshot(self, name: str) -> None:
        """Kept in the folder that TINKER_SCREENSHOTS names, if it does."""
        if path := screenshot_path(name):
            self.page.wait_for_timeout(600)  # for what is still being drawn
            self.panel.screenshot(path=path)

    def page_screenshot(self, name: str) -> None:
        """Of the whole page, kept as those of the panel."""
        if path := screenshot_path(name):
            self.page.wait_for_timeout(600)
            self.page.screenshot(path=path)


def until(said: Callable[[], Any], seconds: float = 150.0) -> Any:
    """What `said` says as soon as that is something true."""
    deadline = time.monotonic() + seconds
    while not (value := said()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)
    return value
