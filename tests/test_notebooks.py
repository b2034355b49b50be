"""The notebooks, executed from top to bottom against a real server."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from jupyter_tinker.notebook.connection import KEY, URL, ConnectionFailed, connect
from tests.servers import Server, start_server

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


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


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # of the client that plays the browser
def test_quickstart(server: Server, in_a_kernel_of) -> None:
    in_a_kernel_of(server)
    # nbclient's kernels belong to this process and not to the server; they are told where it is.
    os.environ.update({URL: server.url, KEY: server.key})
    notebook = nbformat.read(NOTEBOOKS / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600).execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert f"Tinker at {server.url}" in text
    assert "held-out loss:" in text
    (answers,) = (cell for cell in notebook.cells if "sampler.sample(" in cell.source)
    assert answers.outputs[0].text.count("ay") > 4, "it speaks pig latin"
    figures = [
        output["data"]["application/vnd.plotly.v1+json"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert [len(figure["data"]) for figure in figures] == [2]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # of the client that plays the browser
def test_steering(server: Server, in_a_kernel_of) -> None:
    in_a_kernel_of(server)
    os.environ.update({URL: server.url, KEY: server.key})
    notebook = nbformat.read(NOTEBOOKS / "steering.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in shown)
    rates, branches = (
        ast.literal_eval(output["data"]["text/plain"])
        for output in shown
        if output["output_type"] == "execute_result" and "[(" in output["data"]["text/plain"]
    )
    assert rates == [(12, 1e-3, 1e-3)] + [(step, 2.5e-4, 1e-3) for step in (13, 14, 15, 16)]
    assert branches == [(16, 0), (9, 1), (10, 1), (11, 1), (12, 1)]
    assert "/weights/step=10" in "".join(output.get("text", "") for output in shown)


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
