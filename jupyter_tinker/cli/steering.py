"""Commands that steer a run from its next optimizer step on."""

from __future__ import annotations

from typing import Any

from traitlets import Int

from ..notebook.runs import Run
from .remote import RUN, ServerCommand

_SOON = "from its next step on"
_OWN = "as the client asks"


class LrCommand(ServerCommand):
    """Change a run's learning rate."""

    name = "jupyter-tinker-lr"
    description = f"""Change a run's learning rate: a factor on what its client asks (x0.5), a value
    whatever it asks (1e-4), or `reset` for what it asks.

    {RUN}"""
    usage = "lr RUN x0.5|1e-4|reset [--ramp N]"
    examples = """
    jupyter tinker lr latest x0.5
    jupyter tinker lr latest 1e-5 --ramp 100
    jupyter tinker lr latest reset
    """
    ramp = Int(0, min=0, config=True, help="Reach it linearly, in this many optimizer steps.")
    aliases = {**ServerCommand.aliases, "ramp": "LrCommand.ramp"}  # noqa: RUF012

    def act(self, arguments: list[str]) -> None:
        match arguments:
            case [name, "reset"]:
                self._set(name, value=None)
            case [name, text] if text.startswith("x"):
                self._set(name, scale=self.number(text[1:], "the factor behind x"))
            case [name, text]:
                self._set(name, value=self.number(text, "a learning rate"))
            case _:
                self.misused()

    def _set(self, name: str, **setting: float | None) -> None:
        run = self.run(name)
        controls = run.controls.learning_rate(ramp_steps=self.ramp, **setting)
        print(f"learning rate of {run.id}: {learning_rate(run, controls)}")


def learning_rate(run: Run, controls: dict[str, Any]) -> str:
    """What controls make of it, in words."""
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
    return f"{words}, {'reached over its next ' + _steps(ramp['steps']) if ramp else _SOON}"


def _steps(count: int) -> str:
    return "step" if count == 1 else f"{count} steps"


class OverrideCommand(ServerCommand):
    """A value instead of what the client asks."""

    control = ""  # its name in the HTTP API
    words = ""
    none = "0"

    def act(self, arguments: list[str]) -> None:
        if len(arguments) != 2:
            self.misused()
        reset = arguments[1] == "reset"
        value = None if reset else self.number(arguments[1], f"the {self.words}")
        run = self.run(arguments[0])
        used = run.controls.change(**{self.control: value})[self.control]
        amount = self.none if used == 0 else f"{used or 0:g}"
        told = _OWN if used is None else f"{amount}, whatever the client asks"
        print(f"{self.words} of {run.id}: {told}, {_SOON}")


class ClipCommand(OverrideCommand):
    """Change the norm that a run's gradients are clipped to."""

    name = "jupyter-tinker-clip"
    description = f"""Change the global norm that a run's gradients are clipped to; 0: no clipping;
    `reset`: as its client asks.

    {RUN}"""
    usage = "clip RUN X|reset"
    control = "grad_clip_norm"
    words = "gradient clipping"
    none = "none"


class DecayCommand(OverrideCommand):
    """Change a run's weight decay."""

    name = "jupyter-tinker-decay"
    description = f"""Change a run's weight decay; `reset`: as its client asks.

    {RUN}"""
    usage = "decay RUN X|reset"
    control = "weight_decay"
    words = "weight decay"


class PauseCommand(ServerCommand):
    """Pause a run before its next training operation."""

    name = "jupyter-tinker-pause"
    description = f"""Pause a run before its next training operation. Its client waits.

    {RUN}"""
    usage = "pause RUN"

    def act(self, arguments: list[str]) -> None:
        if len(arguments) != 1:
            self.misused()
        run = self.run(arguments[0])
        controls = run.controls.change(paused=True)
        print(f"{run.id} is paused: {controls['paused_because']}")


class ResumeCommand(ServerCommand):
    """Let a paused run go on."""

    name = "jupyter-tinker-resume"
    description = f"""Let a paused run go on.

    {RUN}"""
    usage = "resume RUN"

    def act(self, arguments: list[str]) -> None:
        if len(arguments) != 1:
            self.misused()
        print(f"{self.run(arguments[0]).resume().id} goes on")


class StepCommand(ServerCommand):
    """Let a run make some optimizer steps, and pause."""

    name = "jupyter-tinker-step"
    description = f"""Let a run make N optimizer steps, and pause. It is resumed if it is paused.

    {RUN}"""
    usage = "step RUN N"

    def act(self, arguments: list[str]) -> None:
        if len(arguments) != 2:
            self.misused()
        count = self.whole(arguments[1], "the number of steps")
        run = self.run(arguments[0]).run_steps(count)
        print(f"{run.id} makes its next {_steps(count)}, and pauses then")


class GuardCommand(ServerCommand):
    """Show or set the rules that pause a run."""

    name = "jupyter-tinker-guard"
    description = f"""Show or set the rules that pause a run by themselves.

    non-finite: a step is skipped, because a loss or a gradient is not a finite number.

    loss-spike: a loss is above the median of the last WINDOW ones by FACTOR times their spread.

    plateau: for PATIENCE steps no loss was below the best one by more than MIN_DELTA.

    {RUN}"""
    usage = (
        "guard RUN [non-finite on|off | loss-spike [FACTOR [WINDOW]]|off "
        "| plateau MIN_DELTA PATIENCE|off | off]"
    )
    examples = """
    jupyter tinker guard latest
    jupyter tinker guard latest non-finite on
    jupyter tinker guard latest loss-spike 6 50
    jupyter tinker guard latest plateau 0.01 200
    jupyter tinker guard latest off
    """

    def act(self, arguments: list[str]) -> None:
        rules: dict[str, Any]
        match arguments[1:]:
            case []:
                rules = {}
            case ["off"]:
                rules = {"non_finite": False, "loss_spike": None, "plateau": None}
            case ["non-finite", ("on" | "off") as state]:
                rules = {"non_finite": state == "on"}
            case ["loss-spike", "off"]:
                rules = {"loss_spike": None}
            case ["loss-spike", *numbers] if len(numbers) < 3:
                rules = {"loss_spike": self._spike(*numbers)}
            case ["plateau", "off"]:
                rules = {"plateau": None}
            case ["plateau", delta, steps]:
                rules = {"plateau": self._plateau(delta, steps)}
            case _:
                self.misused()
        if not arguments:
            self.misused()
        run = self.run(arguments[0])
        controls = run.controls.guards(**rules) if rules else run.controls.get()
        print(f"guards of {run.id}: {guards(controls['guards'])}")

    def _spike(self, factor: str | None = None, window: str | None = None) -> dict[str, Any]:
        rule: dict[str, Any] = {}
        if factor is not None:
            rule["factor"] = self.number(factor, "FACTOR")
        if window is not None:
            rule["window"] = self.whole(window, "WINDOW")
        return rule

    def _plateau(self, delta: str, steps: str) -> dict[str, Any]:
        return {
            "min_delta": self.number(delta, "MIN_DELTA"),
            "patience": self.whole(steps, "PATIENCE"),
        }


def guards(rules: dict[str, Any]) -> str:
    """Rules, in words."""
    spike, plateau = rules["loss_spike"], rules["plateau"]
    words = ["non-finite"] if rules["non_finite"] else []
    if spike:
        words.append(f"loss-spike {spike['factor']:g} {spike['window']}")
    if plateau:
        words.append(f"plateau {plateau['min_delta']:g} {plateau['patience']}")
    return ", ".join(words) or "none"
