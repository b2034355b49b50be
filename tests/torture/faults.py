"""Arms and disarms the places to break that `faulty/sitecustomize.py` has put into a server."""

from __future__ import annotations

import os
import time
from pathlib import Path

_FAULTY = Path(__file__).parent / "faulty"

# Where a process kills itself, in the order of a training step's life. In the engine:
ENGINE_POINTS = (
    "forward",  # a microbatch is through: some of the gradients are accumulated
    "optimizer",  # the weights were changed, and nobody has been told
    "answered",  # an operation is done, and nobody has been told
    "decode",  # some tokens were sampled
    "snapshots-writing",  # a snapshot is written, and not yet in its place
    "snapshots-renamed",  # it is in its place, and nobody has been told
    "checkpoints-writing",
    "checkpoints-renamed",
)
# Besides, "answered-" with the name of an operation. In the server:
SERVER_POINTS = (
    "commit",  # all statements of a transaction were sent, and the transaction not committed
    "committed",  # it was committed, and nobody has been told
)


class Faults:
    """The faults of one server and its engines."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        """What the server has to be started with; its engines inherit it."""
        return {"TORTURE_FAULTS": str(self._folder), "PYTHONPATH": str(_FAULTY)}

    def arm(self, point: str, nth: int = 1, times: int = 1) -> None:
        """Have the process that next reaches `point` for the `nth` time kill itself there; so often
        that `times` processes do."""
        (self._folder / f"{point}.fired").unlink(missing_ok=True)
        self.switch_on(point, f"{nth} {times}")

    def disarm(self, point: str) -> bool:
        """Whether that came in time; if not, the process is dead."""
        try:
            (self._folder / point).unlink()
        except FileNotFoundError:
            return False
        return True

    def victim(self, point: str) -> int:
        """The process that `point` killed last."""
        file = self._folder / f"{point}.fired"
        while not file.exists() or not file.read_text():  # it is written on the way
            time.sleep(0.01)
        return int(file.read_text())

    def armed(self, point: str) -> bool:
        return (self._folder / point).exists()

    def switch_on(self, mode: str, value: str) -> None:
        """Begin a fault that lasts.

        "poison": bytes, in hexadecimal, that kill the engine with each forward_backward that has
        them; "disk-full-engine" and "disk-full-server": the size in bytes that files cannot grow
        beyond; "slow-" with the name of an operation: seconds that it takes longer; "clock":
        seconds that are added to the time of day.
        """
        fresh = self._folder / f".{mode}"
        fresh.write_text(value)
        os.replace(fresh, self._folder / mode)

    def switch_off(self, mode: str) -> None:
        (self._folder / mode).unlink()
