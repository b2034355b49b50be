"""`%load_ext jupyter_tinker`, and the line magic `%tinker` that it brings."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from . import completion
from .client import RequestFailed
from .commands import Command, Misuse, whole
from .kernel import tag_sessions, untag_sessions
from .session import OWN, Session, Status
from .steering import COMMANDS

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_HELP = ("-h", "--help")
_SESSIONS: dict[InteractiveShell, Session] = {}


def load(shell: InteractiveShell) -> None:
    """Add `%tinker`; find this kernel's server and say so in a line, or why there is none. The
    sessions of its clients are tagged as this kernel's."""
    session = Session(shell)
    unload(shell)
    shell.magics_manager.register_function(magic(session), "line", "tinker")
    _SESSIONS[shell] = session
    session.progress.start()
    shell.Completer.custom_matchers.append(completion.complete)
    tag_sessions()
    try:
        print(Status(session.client(), brief=True))
    except RequestFailed as error:
        print(error)


def unload(shell: InteractiveShell) -> None:
    """Take `%tinker` away, and the tag."""
    untag_sessions()
    shell.magics_manager.magics["line"].pop("tinker", None)
    if (session := _SESSIONS.pop(shell, None)) is not None:
        session.progress.stop()
    matchers = shell.Completer.custom_matchers
    if completion.complete in matchers:
        matchers.remove(completion.complete)


def magic(session: Session) -> Callable[[str], Any]:
    """`%tinker`: a line goes to the command that it begins with."""

    def tinker(line: str) -> Any:
        try:
            return _perform(session, _words(line))
        except (RequestFailed, Misuse) as error:
            raise UsageError(str(error)) from None

    tinker.__doc__ = _overview()
    return tinker


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise Misuse(f"%tinker {line}: {error}".lower()) from None


def _perform(session: Session, words: Sequence[str]) -> Any:
    if not words:
        return Status(session.client())
    name, *arguments = words
    if name in (*_HELP, "help"):
        print(_overview())
        return None
    command = OWN.get(name) or COMMANDS.get(name)
    if command is None:
        known = ", ".join((*OWN, *COMMANDS))
        raise Misuse(f"There is no command {name[:50]!r}; there are {known}.")
    if any(argument in _HELP for argument in arguments):
        print(_help(command))
        return None
    arguments, options = _options(command, arguments)
    try:
        answer = command.perform(session if name in OWN else session.run, arguments, **options)
    except Misuse as error:
        raise Misuse(str(error) or f"usage: %tinker {command.usage}") from None
    if answer.text and (answer.value is None or str(answer.value) != answer.text):
        print(answer.text)
    return answer.value


def _options(command: Command, words: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """The arguments among the words behind a command, and its options."""
    arguments, options, rest = [], {}, list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            arguments.append(word)
            continue
        option, equals, text = word[2:].partition("=")
        if option not in command.options:
            raise Misuse(f"{command.name} has no option --{option[:50]}: %tinker {command.usage}")
        if not equals and not rest:
            raise Misuse(f"--{option} wants a number behind it")
        options[option] = whole(text if equals else rest.pop(0), f"--{option}")
    return arguments, options


def _help(command: Command) -> str:
    parts = [f"%tinker {command.usage}", *map(_filled, command.help.split("\n\n"))]
    parts += [f"--{name} N   {told}" for name, told in command.options.items()]
    parts += ["\n".join(f"    %tinker {example}" for example in command.examples)]
    return "\n\n".join(filter(None, parts))


def _overview() -> str:
    commands = [*OWN.values(), *COMMANDS.values()]
    wide = max(len(command.name) for command in commands)
    return "\n".join(
        (
            "Watch and steer the training runs of a Tinker server.",
            "",
            f"  %tinker {'':{wide}}  The server, its engine, and its runs.",
            *(f"  %tinker {c.name:{wide}}  {c.summary}" for c in commands),
            "",
            "%tinker COMMAND --help says more.",
        )
    )


def _filled(paragraph: str) -> str:
    return fill(paragraph, 88)
