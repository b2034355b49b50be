"""A run cannot be lost: whenever the engine or the server ends, all that a client sees is time."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jupyter_tinker.server import saving, suspects, training
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire.controls import parse_change
from tests.server.fake_runs import BAD, INFINITE
from tests.server.lives import RUN, Deed, End, Ending, Story, World
from tests.server.one_service import add_session, ask, forward_backward, optim_step

Tell = Callable[[Story, dict[int, Ending]], tuple[World, End]]


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
    [forward_backward(8, only=True), ask("save_weights_for_sampler", sampling_session_seq_id=0)],
    [forward_backward(8), optim_step()],
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


@dataclass(frozen=True)
class Undisturbed:
    """A story whose telling nothing ended."""

    story: Story
    points: list[str]
    end: End


@pytest.fixture(scope="module")
def tell(beginning: Path, tmp_path_factory: pytest.TempPathFactory) -> Tell:
    """Tells a story with endings; returns the world it was told in, and what came of it."""

    def _tell(story: Story, endings: dict[int, Ending]) -> tuple[World, End]:
        folder = tmp_path_factory.mktemp("world")
        shutil.copytree(beginning, folder, dirs_exist_ok=True)
        world = World(folder, story, endings)
        return world, world.play()

    return _tell


@pytest.fixture(scope="module", params=[STORY, REWINDS], ids=["all", "rewinds"])
def undisturbed(request: pytest.FixtureRequest, tell: Tell) -> Undisturbed:
    world, end = tell(request.param, {})
    return Undisturbed(request.param, world.points, end)


SLOW = pytest.mark.slow


def points(undisturbed: Undisturbed, ending: Ending) -> list[int]:
    """Where an ending makes a difference: behind a transaction as much as before what comes next,
    and to the engine only while it does something."""
    left_out = {"committed"} if ending == "server" else {"committed", "transaction"}
    return [number for number, what in enumerate(undisturbed.points) if what not in left_out]


def check(tell: Tell, undisturbed: Undisturbed, endings: dict[int, Ending]) -> None:
    world, end = tell(undisturbed.story, endings)
    told = [f"{ending} at point {n}, {world.points[n : n + 1]}" for n, ending in endings.items()]
    assert not (found := differences(end, undisturbed.end)), "\n".join([", ".join(told), *found])


@pytest.mark.parametrize("ending", ["engine", "server", "stop"])
def test_one_ending_at_some_point(tell: Tell, undisturbed: Undisturbed, ending: Ending) -> None:
    for point in random.Random(0).sample(points(undisturbed, ending), 8):
        check(tell, undisturbed, {point: ending})


@SLOW
@pytest.mark.parametrize("ending", ["engine", "server", "stop"])
@pytest.mark.parametrize("part", range(4))
def test_one_ending_at_every_point(
    tell: Tell, undisturbed: Undisturbed, ending: Ending, part: int
) -> None:
    for point in points(undisturbed, ending)[part::4]:
        check(tell, undisturbed, {point: ending})


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=SLOW) for n in range(4, 40))])
def test_many_endings(
    tell: Tell, undisturbed: Undisturbed, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An engine that dies twice at the same request gives up on it, as it should.
    monkeypatch.setattr(training, "_DEATHS", 100)
    monkeypatch.setattr(training, "_REVIVALS", 100)
    monkeypatch.setattr(saving, "_DEATHS", 100)
    monkeypatch.setattr(suspects, "_DEATHS", 100)  # and so does one of which the server dies
    draw = random.Random(seed)
    kinds: tuple[Ending, ...] = ("engine", "engine", "server", "stop")
    endings = {draw.randrange(len(undisturbed.points)): draw.choice(kinds) for _ in range(12)}
    check(tell, undisturbed, endings)


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
