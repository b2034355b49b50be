"""Exports: which checkpoint is meant, what is refused, and that a place is written whole or not."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jupyter_tinker.cli import main
from jupyter_tinker.server import child
from jupyter_tinker.server import export as exporting
from jupyter_tinker.server.catalog import Catalog
from jupyter_tinker.server.checkpoints import Checkpoints, parse_path
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.export import ExportError, Source, export, find, source
from jupyter_tinker.server.journal import Journal
from jupyter_tinker.server.run_store import RunStore
from jupyter_tinker.server.schema import RequestRow, RunRow

from .test_catalog import make_model

RUN = "s:train:0"


class State:
    """A state directory as a server leaves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = make_model(folder / "base")
        self.catalog = Catalog(models_dir=str(folder / "models"), hub_cache=str(folder / "hub"))
        self.checkpoints = Checkpoints(self.database(), folder / "checkpoints")

    def database(self) -> Database:
        return Database(default_url(self.folder))

    def add_run(self) -> None:
        run = RunRow(
            id=RUN,
            session_id="s",
            owner="ada",
            base_model="tiny",
            base_path=str(self.base),
            hub_id=None,
            architecture="LlamaForCausalLM",
            lora={"rank": 4},
            user_metadata=None,
            created_at=1.0,
            last_request_at=1.0,
        )
        request = RequestRow(
            id="r", run_id=RUN, seq_id=0, kind="create_model", server="x", accepted_at=1.0
        )
        asyncio.run(Journal(self.database(), "x").add_run(run, request, b""))

    def add(self, path: str, **values: Any) -> Path:
        """A checkpoint: its row, and files as the engine writes them."""
        parsed = parse_path(path)
        folder = self.checkpoints.folder(parsed)
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        save_file({"w": np.ones(4, "f4")}, folder / "adapter_model.safetensors")
        save_file({"step": np.ones(1, "f4")}, folder / "optimizer.safetensors")
        (folder / "jupyter_tinker.json").write_text('{"merging_unties": false}')
        row = {"base_model": "tiny", "base_path": str(self.base), "lora": {}, "step": 1}
        row |= {"size_bytes": 1, **values}
        asyncio.run(self.checkpoints.add(parsed, **row))
        return folder

    def source(self, text: str, *, base: bool = True) -> Source:
        row = asyncio.run(find(text, self.checkpoints, RunStore(self.database())))
        return source(row, self.checkpoints, self.catalog, base=base)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


PATH = f"tinker://{RUN}/weights/first"
_RUN = child.run


def test_a_path_and_a_runs_newest(state: State) -> None:
    first = state.add(PATH)
    second = state.add(f"tinker://{RUN}/sampler_weights/second")
    state.add("tinker://other:train:0/weights/third")
    assert state.source(PATH).folder == first
    assert state.source(PATH).base_path == state.base
    assert state.source(RUN).folder == second


def test_unknown_ones_are_told_apart(state: State) -> None:
    with pytest.raises(ExportError, match=r"There is no run 's:train:0'; `jupyter tinker runs`"):
        state.source(RUN)
    state.add_run()
    with pytest.raises(ExportError, match="has no checkpoint"):
        state.source(RUN)
    for path in (PATH, f"tinker://{RUN}/weights/../../x"):
        with pytest.raises(ExportError, match="checkpoint"):
            state.source(path)
    state.add(PATH, expires_at=time.time() - 1)
    for text in (PATH, RUN):
        with pytest.raises(ExportError, match="no checkpoint"):
            state.source(text)


def _cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda folder: (folder / "adapter_config.json").unlink(),
            "adapter_config.json is missing",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "safetensors is missing"),
        (_cut("adapter_config.json"), "cannot be read"),
        (_cut("adapter_model.safetensors"), "cannot be read"),
    ],
)
def test_damage_is_told(state: State, damage: Callable[[Path], None], sentence: str) -> None:
    damage(state.add(PATH))
    with pytest.raises(ExportError, match=f"checkpoint {PATH} is damaged: .*{sentence}"):
        state.source(PATH)


def test_a_base_model_that_moved_is_found_by_name(state: State) -> None:
    state.add(PATH)
    moved = state.folder / "models" / "tiny"
    moved.parent.mkdir()
    state.base.rename(moved)
    assert state.source(PATH).base_path == moved
    moved.rename(state.folder / "gone")
    state.catalog._listing = None
    with pytest.raises(ExportError, match=r"'tiny', is not at .*/base any more.*no base model"):
        state.source(PATH)
    assert state.source(PATH, base=False).folder.is_dir()  # the adapter needs none


def test_the_adapter_is_copied_without_its_optimizer(state: State, out: Path) -> None:
    folder = state.add(PATH)
    export(state.source(PATH), out, "adapter")
    names = {"adapter_config.json", "adapter_model.safetensors", "jupyter_tinker.json"}
    assert {file.name for file in out.iterdir()} == names
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in names)


def engine_is(monkeypatch: pytest.MonkeyPatch, script: str) -> list[list[str]]:
    """Let `script`, given `out`, stand in for the engine's program; returns the commands."""
    commands = []

    def instead(command: list[str], on_line: Callable[[str], None]) -> None:
        commands.append(command)
        head = "import pathlib, sys; out = pathlib.Path(sys.argv[1]); "
        _RUN([sys.executable, "-c", head + script, command[7]], on_line)

    monkeypatch.setattr(child, "run", instead)
    return commands


FOLDER = "out.mkdir(); (out / 'config.json').write_text('{}'); print('0.50 Half way')"


def test_the_engine_merges_beside_the_place(
    state: State, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = state.add(PATH)
    commands = engine_is(monkeypatch, FOLDER)
    told: list[tuple[str, float | None]] = []
    found = state.source(PATH)
    export(found, out, "merged", dtype="float16", progress=lambda *stage: told.append(stage))
    (command,) = commands
    assert command[3:7] == ["merged", str(folder), "tiny", str(state.base)]
    assert command[8:] == ["--dtype", "float16"]
    assert Path(command[7]).parent.parent == out.parent  # one disk, so that a rename does
    assert [file.name for file in out.iterdir()] == ["config.json"]
    assert ("Half way", 0.5) in told
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "state"]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (f"{FOLDER}; sys.stderr.write('noise\\n'); sys.exit('it is damaged')", "it is damaged"),
        (f"{FOLDER}; import os; os.kill(os.getpid(), 9)", "exit status -9"),
    ],
)
def test_a_failure_leaves_what_was_there(
    state: State, out: Path, monkeypatch: pytest.MonkeyPatch, script: str, sentence: str
) -> None:
    state.add(PATH)
    engine_is(monkeypatch, script)
    with pytest.raises(ExportError, match=f"{PATH} could not be exported: {sentence}"):
        export(state.source(PATH), out, "merged")
    assert [path.name for path in out.parent.iterdir()] == ["state"]
    make_model(out)
    with pytest.raises(ExportError):
        export(state.source(PATH), out, "merged", force=True)
    assert {file.name for file in out.iterdir()} == {"config.json", "model.safetensors"}


def test_an_interrupt_leaves_nothing(
    state: State, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.add(PATH)
    engine_is(monkeypatch, f"{FOLDER}; sys.stdout.flush(); import time; time.sleep(600)")

    def interrupt(text: str, fraction: float | None) -> None:
        if text == "Half way":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(state.source(PATH), out, "merged", progress=interrupt)
    assert [path.name for path in out.parent.iterdir()] == ["state"]


def test_force_replaces_only_what_an_export_left(
    state: State, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.add(PATH)
    found = state.source(PATH)
    export(found, out, "adapter")
    with pytest.raises(ExportError, match=r"exists; choose another name, or replace it with --f"):
        export(found, out, "adapter")
    engine_is(monkeypatch, FOLDER)
    export(found, out, "merged", force=True)
    assert [file.name for file in out.iterdir()] == ["config.json"]
    with pytest.raises(ExportError, match="not what an export of this kind left"):
        export(found, out, "gguf", force=True)
    for folder in (out.parent / "precious", out.parent / "empty"):
        folder.mkdir()
    (out.parent / "precious" / "diary").write_text("")
    for name in ("precious", "empty"):
        with pytest.raises(ExportError, match="--force does not replace it"):
            export(found, out.parent / name, "adapter", force=True)
    engine_is(monkeypatch, "out.write_bytes(b'GGUF')")
    file = out.parent / "m.gguf"
    for _ in range(2):
        export(found, file, "gguf", force=True)
    assert file.read_bytes() == b"GGUF"
    file.write_text("a letter")
    with pytest.raises(ExportError, match="--force does not replace it"):
        export(found, file, "gguf", force=True)


def test_nothing_is_written_over_its_own_source(state: State) -> None:
    state.add(PATH)
    found = state.source(PATH)
    for place in (state.base, state.base / "x", state.folder, found.folder):
        with pytest.raises(ExportError, match=r"is where the .* itself lies"):
            export(found, place, "merged", force=True)


def test_a_rename_that_fails_puts_the_old_one_back(
    state: State, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.add(PATH)
    engine_is(monkeypatch, FOLDER)
    make_model(out)
    rename = Path.rename

    def fail_on_the_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_new)
    with pytest.raises(ExportError, match="could not be written: Input/output error"):
        export(state.source(PATH), out, "merged", force=True)
    assert (out / "model.safetensors").exists()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "state"]


def test_an_adapter_that_must_not_be_merged_in_place_says_so(state: State) -> None:
    folder = state.add(PATH)
    assert exporting.warning(state.source(PATH)) is None
    (folder / "jupyter_tinker.json").write_text(json.dumps({"merging_unties": True}))
    assert "use --merged" in (exporting.warning(state.source(PATH)) or "")


@pytest.fixture
def command(
    state: State, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`jupyter tinker export ...`: its exit status, what it printed, and what it complained of."""
    for name in ("DATA", "CONFIG", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(state.folder / "jupyter"))
    settings = state.folder / "jupyter" / "jupyter_tinker_config.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"TinkerExtension": {"state_dir": str(state.folder)}}))

    def run(*arguments: str) -> tuple[int, str, str]:
        from jupyter_tinker.cli import ExportCommand, TinkerApp

        status = 0
        try:
            main(["export", *arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        for app in (TinkerApp, ExportCommand):
            app.clear_instance()
        return status, *capsys.readouterr()

    return run


def test_the_command(
    state: State,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    state.add(PATH)
    status, printed, complained = command(RUN, str(out))
    assert (status, printed, complained) == (0, f"{out} holds {PATH}\n", "")
    assert command(PATH, str(out))[0] == 1
    commands = engine_is(monkeypatch, FOLDER)
    status, printed, complained = command(
        PATH, str(out), "--merged", "--dtype", "bfloat16", "--force"
    )
    assert (status, complained) == (0, "Starting torch\nHalf way\n")
    assert printed == f"{out} holds {PATH}, merged into tiny\n"
    assert commands[0][-2:] == ["--dtype", "bfloat16"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((RUN,), "usage: jupyter tinker export CHECKPOINT OUT"),
        ((RUN, "out", "--merged", "--gguf"), "usage: jupyter tinker export CHECKPOINT OUT"),
        ((RUN, "out", "--dtype=float16"), "--dtype goes with --merged or --gguf"),
        (("tinker://x/weights/y", "out"), "There is no checkpoint tinker://x/weights/y."),
        (("tinker://x", "out"), "is no checkpoint path"),
    ],
)
def test_the_command_complains_in_a_sentence(
    state: State,
    command: Callable[..., tuple[int, str, str]],
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    state.add(PATH)
    status, _, complained = command(*arguments)
    assert status == 1
    assert complained.startswith("jupyter tinker: ")
    assert complaint in complained
    assert complained.count("\n") == 1
