"""Prints how fast, how responsive and how large it is; docs/performance.md explains the figures.

python tests/bench [--out FIGURES.json] [--shape SHAPE] [--dtype DTYPE] [PART ...]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __package__ in (None, ""):  # run by its folder's name: let `tests` be found, not our modules
    sys.path[0] = str(ROOT)

from tests.bench import device  # noqa: E402
from tests.bench.noise import Patience  # noqa: E402
from tests.bench.parts import PARTS  # noqa: E402
from tests.bench.report import Report, machine  # noqa: E402
from tests.bench.shapes import SHAPES, made, stored  # noqa: E402


def main() -> None:
    arguments = _arguments()
    report = Report(patience=Patience(arguments.wait))
    began = time.monotonic()
    if arguments.dtype is not None:
        device.ask_for(arguments.dtype)
    with _model(arguments) as folder:
        for name in arguments.parts or PARTS:
            print(f"{name} ...", flush=True)
            PARTS[name](folder, report)
    about = machine()
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"\n{report.table()}\n\n{time.monotonic() - began:.0f} seconds in all")
    if arguments.out is not None:
        report.write(arguments.out, about)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="write the figures to this file, as JSON")
    parser.add_argument(
        "--shape", choices=SHAPES, help="random weights of this shape, in the place of SmolLM2-135M"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="that the model is stored in, and the plain loop computes in",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="spend up to so long, in all, on waiting for other processes to be done",
    )
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    return arguments


def _model(arguments: argparse.Namespace) -> AbstractContextManager[Path]:
    """SmolLM2-135M, as pulled by `jupyter tinker pull`, or kept for the tests; or what is asked for
    in its place."""
    from jupyter_tinker.server.pull import pull

    kept = os.environ.get("TINKER_TEST_MODELS") or ROOT / ".cache" / "models"
    model = pull("smollm2-135m", Path(kept)).path
    if arguments.shape is not None:
        return made(arguments.shape, model)
    return nullcontext(model) if arguments.dtype is None else stored(model)


if __name__ == "__main__":
    main()
