"""Encrypts files to recipients in the format age (age-encryption.org/v1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..wire.ops import OpError

SUFFIX = ".age"
_MOST = 20  # recipients of one checkpoint; each makes every file a little longer


def recipients(texts: Sequence[str]) -> list[Any]:
    """Read public keys: `age1...`, or the line of an ssh-ed25519 or ssh-rsa key.

    Raises `OpError` for one that is none, and for none at all.
    """
    if not 1 <= len(texts) <= _MOST:
        raise OpError(
            f"age_encryption_recipients must name 1 to {_MOST} public keys, and names "
            f"{len(texts)}; leave it out for files that are not encrypted."
        )
    return [_recipient(text) for text in texts]


def encrypt(data: bytes, to: Sequence[Any]) -> bytes:
    """`data` such that each of `to` can read it, and nobody else."""
    import pyrage

    return bytes(pyrage.encrypt(data, list(to)))


def _recipient(text: str) -> Any:
    # Imported when it is needed: few ask for it.
    import pyrage

    kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
    try:
        return kind.Recipient.from_str(text.strip())
    except pyrage.RecipientError as error:
        raise OpError(
            f"{text[:100]!r} in age_encryption_recipients is no public key of age ({error}); one "
            f"looks like age1..., as age-keygen prints it."
        ) from None
