"""The notebooks, executed from top to bottom against a real server."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from jupyter_tinker.notebook.connection import KEY, URL, ConnectionFailed, connect
from tests.servers import Server, start_server

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PLOTLY = "application/vnd.plotly.v1+json"
Execute = Callable[[str], nbformat.NotebookNode]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2: Path):
    started = start_server(tmp_path_factory.mktemp("notebooks"), models={"smollm2-135m": smollm2})
    yield started
    started.stop()


@pytest.fixture
def in_a_kernel_of(monkeypatch: pytest.MonkeyPatch):
    """Makes this process look like a kernel that a server has started."""

    def pretend(server: Server) -> None:
        monkeypatch.setenv("JPY_PARENT_PID", str(server.process.pid))
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", server.env["JUPYTER_RUNTIME_DIR"])
        for name in (URL, KEY):
            monkeypatch.delenv(name, raising=False)

    return pretend


@pytest.fixture
def execute(server: Server, in_a_kernel_of, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Executes a notebook from top to bottom; gives it with its outputs."""

    def run(name: str) -> nbformat.NotebookNode:
        in_a_kernel_of(server)
        # nbclient's kernels belong to this process and not to the server: they are told of it.
        monkeypatch.setenv(URL, server.url)
        monkeypatch.setenv(KEY, server.key)
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        NotebookClient(notebook, timeout=600).execute()
        return notebook

    return run


def outputs_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text_of(notebook: nbformat.NotebookNode) -> str:
    """All that was printed."""
    return "".join(output.get("text", "") for output in outputs_of(notebook))


def figures_of(notebook: nbformat.NotebookNode) -> list[set[str]]:
    """The names of the curves of each figure."""
    shown = [output.get("data", {}) for output in outputs_of(notebook)]
    figures = [data[PLOTLY] for data in shown if PLOTLY in data]
    return [{trace["name"] for trace in figure["data"]} for figure in figures]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # of the client that plays the browser
def test_quickstart(server: Server, execute: Execute) -> None:
    notebook = execute("quickstart.ipynb")
    text = text_of(notebook)
    assert f"Tinker at {server.url}" in text
    assert "held-out loss:" in text
    assert "0.0005, half of what the client asks, from its next step on" in text
    assert "asked 0.001, used 0.0005" in text
    (answers,) = (cell for cell in notebook.cells if "sampler.sample(" in cell.source)
    assert answers.outputs[0].text.count("ay") > 4, "it speaks pig latin"
    assert figures_of(notebook) == [{"training", "held out"}]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")
def test_external_client(server: Server, execute: Execute) -> None:
    notebook = execute("external_client.ipynb")
    text = text_of(notebook)
    assert "asked 0.001, used 0.0005" in text
    assert "is at step 3 again, on branch 1" in text
    _, ended, log = text.partition("ended with 0")
    assert ended
    # The script, too, saw what was used, and at the end what it asks.
    assert "learning rate 0.0005" in log
    last = log.partition("request 40: ")[2].partition("\n")[0]
    assert last.endswith("learning rate 0.001")
    (curves,) = figures_of(notebook)
    assert {"loss, smoothed", "abandoned branch 0", "controls", "rewind", "pause"} <= curves
    (key,) = server.fetch("tinker/keys")[1]["keys"]
    assert key["revoked_at"] is not None


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")
def test_rl(execute: Execute) -> None:
    text = text_of(execute("rl.ipynb"))
    found = re.search(r"of the held-out problems: (\d+)% before, (\d+)% after", text)
    assert found is not None
    assert int(found[2]) >= int(found[1]) + 10


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # of the client that plays the browser
def test_steering(execute: Execute) -> None:
    notebook = execute("steering.ipynb")
    shown = outputs_of(notebook)
    assert any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in shown)
    rates, branches = (
        ast.literal_eval(output["data"]["text/plain"])
        for output in shown
        if output["output_type"] == "execute_result" and "[(" in output["data"]["text/plain"]
    )
    assert rates == [(12, 1e-3, 1e-3)] + [(step, 2.5e-4, 1e-3) for step in (13, 14, 15, 16)]
    assert branches == [(16, 0), (9, 1), (10, 1), (11, 1), (12, 1)]
    assert "/weights/step=10" in text_of(notebook)


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(notebook: Path) -> None:
    cells = nbformat.read(notebook, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_kernel_finds_the_server_that_started_it(server: Server, in_a_kernel_of) -> None:
    in_a_kernel_of(server)
    found = connect()
    assert (found.url.replace("localhost", "127.0.0.1"), found.key) == (server.url, server.key)
    assert os.environ[URL] == found.url


def test_without_a_server_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    for name in (URL, KEY):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConnectionFailed, match="jupyter tinker"):
        connect()
