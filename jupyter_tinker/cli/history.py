"""Commands that go back in a run's history."""

from __future__ import annotations

from traitlets import Int

from .remote import RUN, ServerCommand


class HistoryCommand(ServerCommand):
    """A command about a step that a run has made."""

    branch = Int(
        None, allow_none=True, config=True, help="Of which branch; default: the one it is on."
    )
    aliases = {**ServerCommand.aliases, "branch": "HistoryCommand.branch"}  # noqa: RUF012

    def act(self, arguments: list[str]) -> None:
        if len(arguments) != 2:
            self.misused()
        self.go(arguments[0], self.whole(arguments[1], "STEP"))

    def go(self, name: str, step: int) -> None:
        raise NotImplementedError


class RewindCommand(HistoryCommand):
    """Set a run back to what it was after an earlier step."""

    name = "jupyter-tinker-rewind"
    description = f"""Set a run's weights and optimizer back to what they were after a step; it goes
    on from there on a new branch. What came after is kept, as an abandoned branch.

    {RUN}"""
    usage = "rewind RUN STEP [--branch N]"

    def go(self, name: str, step: int) -> None:
        run = self.run(name).rewind(step, self.branch)
        print(f"{run.id} is at step {step} again, on branch {run.info['branch']}")


class ForkCommand(HistoryCommand):
    """Print the path of what a run was after a step, to start another from."""

    name = "jupyter-tinker-fork"
    description = f"""Print the tinker:// path of what a run was after a step: a client starts
    another run from it, with create_training_client_from_state.

    {RUN}"""
    usage = "fork RUN STEP [--branch N]"

    def go(self, name: str, step: int) -> None:
        print(self.run(name).fork(step, self.branch))
