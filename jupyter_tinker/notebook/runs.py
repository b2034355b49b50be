"""Runs as Python objects: what they did, and the means to steer them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from . import previews
from .client import LONG, Client, RequestFailed, run_path
from .connection import connect
from .follow import follow
from .lineage import line
from .tables import RunList
from .tokens import BatchList, Tokens, batches, tokens

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from .lr_find import LrFind

_PAGE = 1000
_LEFT = object()  # what is left as it is


class RunControls:
    """What may be changed of a run while it trains, from its next optimizer step on.

    Every method answers with all controls as they are then. Raises `RequestFailed` with the
    server's sentence for what it refuses.
    """

    def __init__(self, client: Client, run_id: str) -> None:
        self._client = client
        self._path = f"{run_path(run_id)}/controls"

    def get(self) -> dict[str, Any]:
        """All controls as they are."""
        controls: dict[str, Any] = self._client.get(self._path)
        return controls

    def change(self, **fields: Any) -> dict[str, Any]:
        """Change controls by their names in the HTTP API."""
        controls: dict[str, Any] = self._client.post(self._path, fields)
        return controls

    def learning_rate(
        self, *, scale: float | None = None, value: Any = _LEFT, ramp_steps: int = 0
    ) -> dict[str, Any]:
        """Use `scale` times what the client asks, or `value` whatever it asks (None: as it asks).

        With `ramp_steps` it is reached in that many steps, linearly.
        """
        if (scale is None) == (value is _LEFT):
            raise ValueError("give one of scale and value")
        fields = {"learning_rate": value} if scale is None else {"learning_rate_scale": scale}
        return self.change(**fields, **({"ramp_steps": ramp_steps} if ramp_steps else {}))

    def grad_clip_norm(self, value: float | None) -> dict[str, Any]:
        """Clip gradients to this global norm; 0: not at all; None: as the client asks."""
        return self.change(grad_clip_norm=value)

    def weight_decay(self, value: float | None) -> dict[str, Any]:
        """None: as the client asks."""
        return self.change(weight_decay=value)

    def guards(
        self, *, non_finite: Any = _LEFT, loss_spike: Any = _LEFT, plateau: Any = _LEFT
    ) -> dict[str, Any]:
        """Set rules that pause the run; those that are not named stay as they are.

        `non_finite`: True or False. `loss_spike`: `{"factor": 6, "window": 50}`, or None for off.
        `plateau`: `{"min_delta": 0.01, "patience": 100}`, or None for off.
        """
        rules = {"non_finite": non_finite, "loss_spike": loss_spike, "plateau": plateau}
        return self.change(guards={k: rule for k, rule in rules.items() if rule is not _LEFT})

    def reset(self) -> dict[str, Any]:
        """Learning rate, clipping and weight decay as the client asks."""
        return self.change(reset=True)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.get().items())
        return f"RunControls({shown})"


class Run:
    """A training run of a server. What it says is asked of the server when it is said."""

    def __init__(self, client: Client, known: dict[str, Any]) -> None:
        self._client = client
        self.known = known  # what the server said of it last
        self.id: str = known["run_id"]
        self.controls = RunControls(client, self.id)

    @property
    def info(self) -> dict[str, Any]:
        """All that the server says of the run, but its steps."""
        self.known = self._client.get(run_path(self.id))
        return self.known

    @property
    def state(self) -> str:
        """ "waiting", "training", "paused", "reviving", "idle" (revived when needed) or "ended"."""
        return str(self.info["state"])

    @property
    def last_step(self) -> dict[str, Any] | None:
        """The newest step of those that are known without asking."""
        return self.known.get("last_step")

    def steps(self, after: int = 0) -> list[dict[str, Any]]:
        """All optimizer steps, oldest first, on whatever branch; with `after`, those whose `id` is
        above it."""
        return self._client.history(self.id, after)

    def line(
        self, steps: list[dict[str, Any]] | None = None, *, branch: int | None = None
    ) -> list[dict[str, Any]]:
        """The steps that led to where the run is, or to the end of a branch: without those that a
        rewind has abandoned. `steps` are all of them, if they are at hand."""
        steps = self.steps() if steps is None else steps
        info = self.info
        return line(steps, info["branches"], info["branch"] if branch is None else branch)

    def history(self, *, branch: int | None = None, all_branches: bool = False) -> DataFrame:
        """`line`, or all steps, as a table of pandas. Raises `ImportError` where that is not
        installed."""
        return _table(lambda: self.steps() if all_branches else self.line(branch=branch))

    def figure(self, *, smoothing: float = 0.9) -> Figure:
        """A plotly figure of loss, gradient norm and learning rate as they are now, with what was
        done to the run; abandoned branches are grey."""
        from .figures import figure

        return figure(self, smoothing=smoothing)

    def batches(self, limit: int = 20) -> BatchList:
        """The last batches that the run was trained on and whose tokens can be looked at, newest
        first."""
        return batches(self._client, self.id, limit)

    def tokens(
        self,
        step: int | None = None,
        *,
        branch: int | None = None,
        sequences: int = 4,
        length: int = 256,
    ) -> Tokens:
        """The hardest sequences of a batch, the last one or that of a step, with every token's
        log-probability. Of each sequence the `length` tokens with the highest loss."""
        return tokens(self._client, self.id, step, branch, sequences, length)

    def pause(self) -> Run:
        """Let the run do nothing from its next training operation on; its client waits."""
        self.controls.change(paused=True)
        return self

    def resume(self) -> Run:
        self.controls.change(paused=False)
        return self

    def run_steps(self, n: int) -> Run:
        """Resume, make `n` optimizer steps, and pause."""
        self.controls.change(steps=n)
        return self

    def rewind(self, step: int, branch: int | None = None) -> Run:
        """Set weights and optimizer back to what they were after a step, and go on from there on a
        new branch; answers when that is done. What came after is kept, as an abandoned branch."""
        self.known = self._client.post(
            f"{run_path(self.id)}/rewind", _place(step, branch), timeout=LONG
        )
        return self

    def fork(self, step: int, branch: int | None = None) -> str:
        """The path of what the run was after a step, for
        `ServiceClient.create_training_client_from_state`."""
        path: str = self._client.post(
            f"{run_path(self.id)}/fork", _place(step, branch), timeout=LONG
        )["path"]
        return path

    def lr_find(
        self,
        *,
        min: float = 1e-6,
        max: float = 1.0,
        steps: int = 60,
        batches: int = 8,
        stop_at: float = 4.0,
        progress: bool = True,
    ) -> LrFind:
        """Sweep over learning rates on a copy of the run, which is left alone, and wait for it.

        `steps` (10 to 200) learning rates rise exponentially from `min` to `max`, with the data of
        the run's newest `batches` (up to 32) optimizer steps in turn. The sweep ends early where
        the smoothed loss is above `stop_at` times its lowest. Ctrl-C cancels it. The method is
        Smith's, https://arxiv.org/abs/1506.01186. Raises `RequestFailed`.
        """
        from .lr_find import find

        settings = {"min": min, "max": max, "steps": steps, "batches": batches, "stop_at": stop_at}
        return find(self._client, self.id, settings, progress=progress)

    def preview(
        self,
        *,
        prompts: Any = _LEFT,
        every: Any = _LEFT,
        max_tokens: Any = _LEFT,
        temperature: Any = _LEFT,
        seed: Any = _LEFT,
        chat: Any = _LEFT,
    ) -> dict[str, Any]:
        """Set what the weights of a step are asked while the run trains; what is not named stays.

        `prompts`: up to five; of `every` so many optimizer steps one answers, with None on request
        only (`preview_now`). `max_tokens`, `temperature` and `seed`: how answers are sampled.
        `chat`: whether a prompt goes into the model's chat template, with None where it has one.
        Answers with all of it, as it is then. The run's numbers do not depend on it. Raises
        `RequestFailed`.
        """
        given = {"prompts": prompts, "every": every, "max_tokens": max_tokens}
        given |= {"temperature": temperature, "seed": seed, "chat": chat}
        fields = {name: value for name, value in given.items() if value is not _LEFT}
        return previews.change(self._client, self.id, fields)

    def preview_now(self) -> dict[str, Any]:
        """Ask the prompts now, of what the run is, also while it is paused; waits for the answers.
        Raises `RequestFailed`."""
        return previews.now(self._client, self.id)

    def previews(self) -> DataFrame:
        """What the prompts were answered with: a row for each step and prompt, oldest first.

        `previews().pivot(index="step", columns="prompt", values="text")` has them side by side.
        Raises `ImportError` where pandas is not installed.
        """
        return _table(lambda: previews.rows(previews.rounds(self._client, self.id)))

    def past_events(self, after: int = 0) -> list[dict[str, Any]]:
        """What happened to the run beside its steps, until now, oldest first."""
        return self._client.past_events(self.id, after)

    def events(self, after: int | None = None) -> Iterator[dict[str, Any]]:
        """What happens to the run, as it happens; from after the event `after`, if one is given."""
        return follow(self._client, [self.id], after)

    def __repr__(self) -> str:
        """What is known without asking."""
        steps = f"step {self.last_step['step']}" if self.last_step else "no step yet"
        return f"<Run {self.id}: {self.known.get('base_model')}, {steps}>"


def _table(rows: Callable[[], list[dict[str, Any]]]) -> DataFrame:
    try:
        import pandas
    except ImportError:
        raise ImportError(
            "A history is a DataFrame of pandas, which is not installed here: "
            "pip install pandas, or use steps(), a list of dictionaries."
        ) from None
    return pandas.DataFrame(rows())


def _place(step: int, branch: int | None) -> dict[str, int]:
    return {"step": step} if branch is None else {"step": step, "branch": branch}


def runs(url: str | None = None, key: str | None = None) -> RunList:
    """All runs of a server, the newest first. Raises `RequestFailed`."""
    return all_runs(connect(url, key))


def run(name: str = "latest", url: str | None = None, key: str | None = None) -> Run:
    """One run of a server: see `resolve`. Raises `RequestFailed`."""
    return resolve(connect(url, key), name)


def compare(*runs: Run | str, smoothing: float = 0.9) -> Figure:
    """A plotly figure of several runs, which may be given by their names. Raises
    `RequestFailed`."""
    from . import figures

    named = [run(one) if isinstance(one, str) else one for one in runs]
    return figures.compare(named, smoothing=smoothing)


def all_runs(client: Client) -> RunList:
    found = RunList()
    while True:
        page = client.get(f"runs?limit={_PAGE}&offset={len(found)}")
        found += [Run(client, known) for known in page["runs"]]
        if not page["runs"] or len(found) >= page["total"]:
            return found


def resolve(client: Client, name: str) -> Run:
    """The run of a name: its id, a beginning that no other id has, "latest", or "latest~N" for the
    one that N newer ones came after. Raises `RequestFailed` that says which there are."""
    found = all_runs(client)
    exact = [run for run in found if run.id == name]
    latest, _, back = name.partition("~")
    if not exact and latest == "latest" and (back.isdecimal() or name == latest):
        if len(found) <= int(back or 0):
            raise RequestFailed(f"There is no run {name!r}: this server has {len(found)} runs.")
        return found[int(back or 0)]
    matches = exact or [run for run in found if name and run.id.startswith(name)]
    if len(matches) > 1:
        some = ", ".join(run.id for run in matches[:5])
        raise RequestFailed(f"Several runs begin with {name!r}: {some}; give more of the id.")
    if not matches:
        raise RequestFailed(f"There is no run {name[:100]!r}; `jupyter tinker runs` lists them.")
    return matches[0]
