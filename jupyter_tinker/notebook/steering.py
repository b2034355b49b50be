"""The commands that steer a run: what each does, and what is said of what it did.

Knows neither program: it is given arguments in words, and finds runs through whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import guards, previews
from .client import RequestFailed
from .commands import Answer, Command, Misuse, number, whole
from .runs import Run

_SOON = "from its next step on"
_OWN = "as the client asks"

Find = Callable[[str], Run]  # a run of a name; asks the server


def _counted(count: int) -> str:
    return "step" if count == 1 else f"{count} steps"


# Values


def _lr(find: Find, arguments: Sequence[str], *, ramp: int | None = None) -> Answer:
    setting: dict[str, float | None]
    match arguments:
        case [name, "reset"]:
            setting = {"value": None}
        case [name, text] if text.startswith("x"):
            setting = {"scale": number(text[1:], "the factor behind x")}
        case [name, text]:
            setting = {"value": number(text, "a learning rate")}
        case _:
            raise Misuse
    run = find(name)
    controls = run.controls.learning_rate(ramp_steps=ramp or 0, **setting)
    return Answer(f"learning rate of {run.id}: {_rate(run, controls)}")


def _rate(run: Run, controls: dict[str, Any]) -> str:
    """What controls make of the learning rate, in words."""
    last = run.last_step or {}
    asked = last.get("learning_rate_requested") or last.get("learning_rate")
    value, scale, ramp = (controls[k] for k in ("learning_rate", "learning_rate_scale", "ramp"))
    if value is not None:
        words = f"{value:g}, whatever the client asks"
    elif scale == 1.0:
        words = _OWN if asked is None else f"{asked:g}, {_OWN}"
    else:
        part = {0.5: "half of", 2.0: "twice"}.get(scale, f"{scale:g} times")
        words = f"{part} what the client asks"
        words = words if asked is None else f"{scale * asked:g}, {words}"
    return f"{words}, {'reached over its next ' + _counted(ramp['steps']) if ramp else _SOON}"


def _override(control: str, words: str, none: str) -> Callable[[Find, Sequence[str]], Answer]:
    """Sets a value in the place of what the client asks; `control` is its name in the HTTP API."""

    def perform(find: Find, arguments: Sequence[str]) -> Answer:
        if len(arguments) != 2:
            raise Misuse
        name, text = arguments
        value = None if text == "reset" else number(text, f"the {words}")
        run = find(name)
        used = run.controls.change(**{control: value})[control]
        amount = none if used == 0 else f"{used or 0:g}"
        told = _OWN if used is None else f"{amount}, whatever the client asks"
        return Answer(f"{words} of {run.id}: {told}, {_SOON}")

    return perform


# Pausing


def _pause(find: Find, arguments: Sequence[str]) -> Answer:
    if len(arguments) != 1:
        raise Misuse
    run = find(arguments[0])
    return Answer(f"{run.id} is paused: {run.controls.change(paused=True)['paused_because']}")


def _resume(find: Find, arguments: Sequence[str]) -> Answer:
    if len(arguments) != 1:
        raise Misuse
    return Answer(f"{find(arguments[0]).resume().id} goes on")


def _step(find: Find, arguments: Sequence[str]) -> Answer:
    if len(arguments) != 2:
        raise Misuse
    count = whole(arguments[1], "the number of steps")
    run = find(arguments[0]).run_steps(count)
    return Answer(f"{run.id} makes its next {_counted(count)}, and pauses then")


# The past


def _rewind(find: Find, arguments: Sequence[str], *, branch: int | None = None) -> Answer:
    name, step = _place(arguments)
    run = find(name).rewind(step, branch)
    return Answer(f"{run.id} is at step {step} again, on branch {run.known['branch']}")


def _fork(find: Find, arguments: Sequence[str], *, branch: int | None = None) -> Answer:
    name, step = _place(arguments)
    path = find(name).fork(step, branch)
    return Answer(path, path)


def _place(arguments: Sequence[str]) -> tuple[str, int]:
    if len(arguments) != 2:
        raise Misuse
    return arguments[0], whole(arguments[1], "STEP")


# The learning rate finder


def _lr_find(
    find: Find, arguments: Sequence[str], *, steps: int | None = None, batches: int | None = None
) -> Answer:
    settings: dict[str, Any] = {"steps": steps, "batches": batches}
    match arguments:
        case [name]:
            pass
        case [name, low, high]:
            settings["min"] = number(low, "the lowest learning rate")
            settings["max"] = number(high, "the highest learning rate")
        case _:
            raise Misuse
    given = {key: value for key, value in settings.items() if value is not None}
    run = find(name)
    try:
        found = run.lr_find(**given)
    except KeyboardInterrupt:
        raise RequestFailed(f"The sweep was cancelled; {run.id} is as it was.") from None
    return Answer(str(found), found)


# Previews


def _preview(find: Find, arguments: Sequence[str], *, every: int | None = None) -> Answer:
    if not arguments:
        raise Misuse
    name, *prompts = arguments
    run = find(name)
    fields: dict[str, Any] = {"prompts": prompts} if prompts else {}
    if every is not None:
        setting = run.preview(**fields, every=every or None)
        return Answer(f"{run.id} answers {_asked(setting)}")
    if fields:
        run.preview(**fields)
    return Answer(previews.words(run.preview_now()))


def _asked(setting: dict[str, Any]) -> str:
    count = len(setting["prompts"])
    prompts = f"{count or 'no'} prompt{'' if count == 1 else 's'}"
    every = setting["every"]
    return f"{prompts}, {'on request only' if every is None else f'every {_counted(every)}'}"


# Guards


def _guard(find: Find, arguments: Sequence[str]) -> Answer:
    if not arguments:
        raise Misuse
    rules = guards.parse(arguments[1:])
    run = find(arguments[0])
    controls = run.controls.guards(**rules) if rules else run.controls.get()
    return Answer(f"guards of {run.id}: {guards.words(controls['guards'])}")


_BRANCH = {"branch": "Of which branch; default: the one it is on."}

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "lr",
            "lr RUN x0.5|1e-4|reset [--ramp N]",
            "Change a run's learning rate.",
            _lr,
            """Either a factor on what its client asks (x0.5), a value whatever it asks (1e-4), or
    `reset` for what it asks.""",
            ("lr latest x0.5", "lr latest 1e-5 --ramp 100", "lr latest reset"),
            {"ramp": "Reach it linearly, in this many optimizer steps."},
            (("x0.5", "x2", "reset"),),
        ),
        Command(
            "clip",
            "clip RUN X|reset",
            "Change the norm that a run's gradients are clipped to.",
            _override("grad_clip_norm", "gradient clipping", "none"),
            "It is their global norm. 0: no clipping; `reset`: as its client asks.",
            ("clip latest 1.0", "clip latest reset"),
            words=(("1.0", "0", "reset"),),
        ),
        Command(
            "decay",
            "decay RUN X|reset",
            "Change a run's weight decay.",
            _override("weight_decay", "weight decay", "0"),
            "`reset`: as its client asks.",
            ("decay latest 0.01", "decay latest reset"),
            words=(("0", "reset"),),
        ),
        Command(
            "pause",
            "pause RUN",
            "Pause a run before its next training operation. Its client waits.",
            _pause,
        ),
        Command("resume", "resume RUN", "Let a paused run go on.", _resume),
        Command(
            "step",
            "step RUN N",
            "Let a run make N optimizer steps, and pause. It is resumed if it is paused.",
            _step,
        ),
        Command(
            "rewind",
            "rewind RUN STEP [--branch N]",
            "Set a run back to what it was after an earlier step.",
            _rewind,
            """Weights and optimizer are what they were then, and the run goes on from there on a
    new branch. What came after is kept, as an abandoned branch.""",
            options=_BRANCH,
        ),
        Command(
            "fork",
            "fork RUN STEP [--branch N]",
            "Give the path of what a run was after a step, to start another from.",
            _fork,
            "A client starts from it with create_training_client_from_state.",
            options=_BRANCH,
        ),
        Command(
            "lr_find",
            "lr_find RUN [FROM TO] [--steps N] [--batches N]",
            "Find a learning rate for a run, on a copy of it.",
            _lr_find,
            """The copy makes steps with learning rates that rise exponentially from FROM to TO,
    1e-6 and 1 if they are not given, with the run's own newest batches, until its loss diverges.
    The run is left alone. Ctrl-C cancels the sweep.

    Suggested is where the smoothed loss fell fastest, or a tenth of where it was lowest if that is
    less.""",
            ("lr_find latest", "lr_find latest 1e-5 1e-2 --steps 100"),
            {
                "steps": "Of so many learning rates, 10 to 200. Default: 60.",
                "batches": "Of how many of its newest steps the data is used, 1 to 32. Default: 8.",
            },
            (("1e-6",), ("1", "1e-1")),
        ),
        Command(
            "preview",
            "preview RUN [PROMPT ...] [--every N]",
            "Let a run answer prompts, now or while it trains.",
            _preview,
            """Up to five prompts. Without --every they are asked now, of the weights that the run
    has, and the answers are printed; without a prompt, the ones that it was given last are.

    With --every, the weights of every Nth step answer while the run trains; the panel shows them,
    and Python has them as previews(). Its numbers do not depend on it.""",
            ("preview latest 'Say hello.' --every 50", "preview latest"),
            {"every": "Ask the weights of every Nth optimizer step; 0: on request only."},
        ),
        Command(
            "guard",
            "guard RUN [non-finite on|off | loss-spike [FACTOR [WINDOW]]|off "
            "| plateau MIN_DELTA PATIENCE|off | off]",
            "Show or set the rules that pause a run by themselves.",
            _guard,
            """non-finite: a step is skipped, because a loss or a gradient is not a finite number.

    loss-spike: a loss is above the median of the last WINDOW ones by FACTOR times their spread.

    plateau: for PATIENCE steps no loss was below the best one by more than MIN_DELTA.""",
            (
                "guard latest",
                "guard latest non-finite on",
                "guard latest loss-spike 6 50",
                "guard latest plateau 0.01 200",
                "guard latest off",
            ),
            words=(("non-finite", "loss-spike", "plateau", "off"), ("on", "off")),
        ),
    )
}
