"""Commands that steer a run, as `notebook.steering` has them."""

from __future__ import annotations

from types import new_class
from typing import Any

from traitlets import Int

from ..notebook.commands import Command, Misuse
from ..notebook.steering import COMMANDS
from .remote import ServerCommand


class SteeringCommand(ServerCommand):
    """One of these commands, its options as traits."""

    command: Command

    def act(self, arguments: list[str]) -> None:
        options = {option: getattr(self, option) for option in self.command.options}
        try:
            print(self.command.perform(self.run, arguments, **options).text)
        except Misuse as error:
            if not str(error):
                self.misused()
            self.fail(str(error))


def _command(command: Command) -> type[SteeringCommand]:
    name = f"{command.name.title()}Command"
    body: dict[str, Any] = {
        "__doc__": command.summary,
        "__module__": __name__,
        "command": command,
        "name": f"jupyter-tinker-{command.name}",
        "description": command.help,
        "usage": command.usage,
        "examples": "\n".join(f"jupyter tinker {example}" for example in command.examples),
        "aliases": {
            **ServerCommand.aliases,
            **{option: f"{name}.{option}" for option in command.options},
        },
    }
    for option, told in command.options.items():
        body[option] = Int(None, min=0, allow_none=True, config=True, help=told)
    return new_class(name, (SteeringCommand,), exec_body=lambda namespace: namespace.update(body))


STEERING = {name: _command(command) for name, command in COMMANDS.items()}
