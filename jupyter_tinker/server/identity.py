"""What tells one server's runs from another's, whatever address a server is reached at."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def identity(state_dir: Path) -> str:
    """32 hexadecimal digits that belong to a state directory for good. They are no secret.

    Where nothing can be written they are new each time.
    """
    file, made = state_dir / "identity", secrets.token_hex(16)
    with suppress(OSError):
        if not file.exists():
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            whole = file.with_name(f".identity-{made}")
            whole.write_text(made)
            os.replace(whole, file)
        return file.read_text()
    return made
