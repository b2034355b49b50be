"""What a person does in JupyterLab: opens a notebook, runs cells, looks."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Locator, Page, expect

from tests.servers import Server

PANEL = """\
%load_ext jupyter_tinker
import jupyter_tinker
panel = jupyter_tinker.Panel()
panel
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


class Lab:
    """One page of JupyterLab and the notebook that is open in it."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.server = server
        self.flags: list[Path] = []

    def open(self, *cells: str) -> None:
        """Open a new notebook of these cells."""
        name = f"{uuid.uuid4().hex[:8]}.ipynb"
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, self.server.home / "root" / name)
        workspace = f"lab/workspaces/{name.removesuffix('.ipynb')}/tree/{name}"
        self.page.goto(f"{self.server.root}{workspace}?token={self.server.token}")
        self.page.wait_for_function(
            "name => window.jupyterapp?.shell?.currentWidget?.context?.path === name", arg=name
        )
        self.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.ready")
        expect(self.page.locator(".jp-Notebook .jp-Cell")).to_have_count(len(cells))

    def open_desk(self, page: str = "") -> None:
        """Open JupyterLab without a document, in a workspace of its own, or another page."""
        page = page or f"lab/workspaces/{uuid.uuid4().hex[:8]}"
        self.page.goto(f"{self.server.root}{page}?token={self.server.token}")
        self.page.wait_for_function("window.jupyterapp?.commands.hasCommand('tinker:show-sidebar')")
        self.page.evaluate("window.jupyterapp.restored.then(() => null)")

    def run_all(self) -> None:
        self.command("notebook:run-all-cells")

    def command(self, name: str, **arguments: Any) -> None:
        # Not waited for: running a cell is over when the cell is.
        self.page.evaluate(
            "([name, given]) => { window.jupyterapp.commands.execute(name, given); }",
            [name, arguments],
        )

    def loop(self) -> str:
        """A cell that trains for as long as the test goes on."""
        flag = self.server.home / f"going-{uuid.uuid4().hex[:8]}"
        flag.touch()
        self.flags.append(flag)
        return LOOP.format(flag=str(flag))

    def close(self) -> None:
        """End the loops and the kernels that they run in."""
        for flag in self.flags:
            flag.unlink(missing_ok=True)
        jupyters = {"Authorization": f"token {self.server.token}"}
        for session in self.server.fetch("api/sessions", headers=jupyters)[1]:
            path = f"api/sessions/{session['id']}"
            self.server.fetch(path, method="DELETE", headers=jupyters)

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
        """Whether a cell runs. The kernel's own status says idle after whatever a subshell did."""
        prompts = self.page.locator(".jp-Notebook .jp-InputPrompt").all_inner_texts()
        return "[*]:" in prompts

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
        if folder := os.environ.get("TINKER_SCREENSHOTS"):
            self.page.wait_for_timeout(600)  # for what is still being drawn
            self.panel.screenshot(path=Path(folder) / f"{name}.png")


def until(said: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `said` says as soon as that is something true."""
    deadline = time.monotonic() + seconds
    while not (value := said()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)
    return value
