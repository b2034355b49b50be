"""The command about keys."""

from __future__ import annotations

import sys
from dataclasses import asdict

from ..notebook.tables import keys_table
from ..server.keys import Keys
from .base import Command


class KeyCommand(Command):
    name = "jupyter-tinker-key"
    description = "Make, list and revoke keys that open the Tinker API and nothing else."
    usage = "key create NAME | key list | key revoke NAME"

    def act(self, arguments: list[str]) -> None:
        keys = Keys(self.database())
        match arguments:
            case ["create", name]:
                print(keys.create(name))
                print("This key is shown only now. Set it as TINKER_API_KEY.", file=sys.stderr)
            case ["revoke", name]:
                keys.revoke(name)
                print(f"The key {name!r} opens nothing any more.")
            case ["list"]:
                print(keys_table([asdict(key) for key in keys.list()]))
            case _:
                self.misused()
