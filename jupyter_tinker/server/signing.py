"""Signatures that let a URL be fetched without a key, for a while."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time


class Signer:
    """Signs names until a time. Secret and signatures live as long as the server."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def sign(self, name: str, expires: int) -> str:
        message = f"{expires}:{name}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()

    def check(self, name: str, expires: str, signature: str) -> bool:
        """Whether the signature is ours and still good. `expires` is in Unix seconds."""
        if not expires.isdecimal() or len(expires) > 12 or int(expires) < time.time():
            return False
        return hmac.compare_digest(self.sign(name, int(expires)).encode(), signature.encode())
