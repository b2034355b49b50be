"""A run cannot be lost: whenever the engine or the server ends, all that a client sees is time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire.controls import parse_change
from tests.server.fake_runs import BAD, INFINITE
from tests.server.lives import RUN, Deed, End, Ending, Story, World
from tests.server.one_service import add_session, ask, forward_backward, optim_step


async def halve(service: TinkerService) -> None:
    change = parse_change({"learning_rate_scale": 0.5})
    await service.steering.change(RUN, change, by="ada")


def rewind(step: int, branch: int | None = None, *, making: int) -> Deed:
    """Rewind, unless the branch that this makes is there already, and only the answer was lost."""

    async def deed(service: TinkerService) -> None:
        run = await service.run(RUN)
        if run.place.branch < making:
            await service.steering.rewind(RUN, step, branch, by="ada")

    return deed


async def fork(service: TinkerService) -> str:
    return str(await service.steering.fork(RUN, 1, None, by="ada"))


# All that a client may ask for.
STORY: Story = [
    [forward_backward(1), forward_backward(2), optim_step()],
    [forward_backward(3), optim_step(), ask("save_weights", path="a")],
    [forward_backward(4, BAD), forward_backward(5), optim_step()],
    [forward_backward(6), forward_backward(7, INFINITE), optim_step()],
    halve,
    [forward_backward(8, only=True), forward_backward(8), optim_step()],
    rewind(2, making=1),
    [forward_backward(9), optim_step()],
    fork,
    [ask("load_weights", path=f"tinker://{RUN}/weights/a", optimizer=True)],
    [forward_backward(10), optim_step(), ask("save_weights_for_sampler", path="b")],
    [forward_backward(11)],
]
# A person goes back and forth, also in the midst of a step.
REWINDS: Story = [
    [forward_backward(1), optim_step(), forward_backward(2), optim_step()],
    [forward_backward(3)],
    rewind(1, making=1),
    [forward_backward(4), optim_step()],  # is skipped
    [forward_backward(5, INFINITE)],
    rewind(1, making=2),
    rewind(2, 0, making=3),
    [optim_step(), forward_backward(6), optim_step()],
    rewind(0, making=4),
    [forward_backward(7), optim_step()],
    [ask("load_weights", path=f"tinker://{RUN}/weights/step=3+branch=3", optimizer=True)],
    [forward_backward(8), optim_step()],
]


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that has its tables and a session: making one takes as long as a whole story."""
    folder = tmp_path_factory.mktemp("beginning")
    add_session(Database(default_url(folder)))
    return folder


@pytest.fixture
def play(beginning: Path, tmp_path: Path) -> Any:
    """Tells a story with endings; returns the world it was told in, and what came of it."""
    count = 0

    def tell(story: Story, endings: dict[int, Ending]) -> tuple[World, End]:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        shutil.copytree(beginning, folder)
        world = World(folder, story, endings)
        return world, world.play()

    return tell


# So many tests share the points of a story, so that one that fails names a few of them.
_PARTS = 6


@pytest.mark.parametrize("part", range(_PARTS))
@pytest.mark.parametrize("ending", ["engine", "server", "stop"])
@pytest.mark.parametrize("story", [STORY, REWINDS], ids=["all", "rewinds"])
def test_one_ending_at_any_point(play: Any, story: Story, ending: Ending, part: int) -> None:
    world, undisturbed = play(story, {})
    faults = []
    for point in range(part, len(world.points), _PARTS):
        disturbed, end = play(story, {point: ending})
        if end != undisturbed:
            faults.append(f"at point {point}, {disturbed.points[point : point + 1]}:")
            faults += differences(end, undisturbed)
    assert not faults, "\n".join(faults)


def differences(end: End, undisturbed: End) -> list[str]:
    told = []
    for name, value in vars(undisturbed).items():
        other = getattr(end, name)
        if other == value:
            continue
        if isinstance(value, dict):
            keys = [key for key in {**value, **other} if value.get(key) != other.get(key)]
            told += [f"  {name} {key}: {other.get(key)}, not {value.get(key)}" for key in keys]
        else:
            told.append(f"  {name}: {other}, not {value}")
    return told
