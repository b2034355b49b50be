"""Asks a Tinker server, with nothing but the standard library.

Knows neither where the server is (`connection`) nor what it is asked (`runs`).
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any

# Seconds: for most questions, and for a rewind, which may make many steps again.
_PATIENCE = 30.0
LONG = 3600.0


class RequestFailed(RuntimeError):
    """What a server refused, or that none answers; the message is the sentence that says why.

    `status` is HTTP's, or None if there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn a POST into a GET, and take the key elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True)
class Client:
    """A Tinker server and the key to it."""

    url: str  # ends in /tinker
    key: str = field(repr=False)

    def get(self, path: str, *, timeout: float = _PATIENCE) -> Any:
        """The JSON at `path` below the URL. Raises `RequestFailed`."""
        return self._json(self.open(path, timeout=timeout))

    def post(self, path: str, body: dict[str, Any], *, timeout: float = _PATIENCE) -> Any:
        """The JSON that a body is answered with. Raises `RequestFailed`."""
        return self._json(self.open(path, body, timeout=timeout))

    def put(self, path: str, body: dict[str, Any], *, timeout: float = _PATIENCE) -> Any:
        """The JSON that a body in the place of what is at `path` is answered with. Raises
        `RequestFailed`."""
        return self._json(self.open(path, body, method="PUT", timeout=timeout))

    def delete(self, path: str, *, timeout: float = _PATIENCE) -> Any:
        """The JSON that deleting what is at `path` is answered with. Raises `RequestFailed`."""
        return self._json(self.open(path, method="DELETE", timeout=timeout))

    def open(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = _PATIENCE,
    ) -> HTTPResponse:
        """An answer that is still to be read. Raises `RequestFailed`."""
        data = None if body is None else json.dumps(body).encode()
        sent = {"X-API-Key": self.key, "Content-Type": "application/json", **(headers or {})}
        try:
            url = f"{self.url}/{path}"
            request = urllib.request.Request(url, data, sent, method=method)
            answer: HTTPResponse = _OPENER.open(request, timeout=timeout)
            return answer
        except urllib.error.HTTPError as error:
            with error:
                raise RequestFailed(self._refusal(error), error.code) from None
        except urllib.error.URLError as error:
            raise self._silent(error.reason) from None
        except (OSError, HTTPException, ValueError) as error:
            raise self._silent(error) from None

    def history(self, run_id: str, after: int = 0) -> list[dict[str, Any]]:
        """A run's optimizer steps, oldest first, as the server keeps them: those whose `id` is
        above `after`."""
        return self._all(run_id, "steps", after)

    def past_events(self, run_id: str, after: int = 0) -> list[dict[str, Any]]:
        """What happened to a run beside its steps, oldest first: events whose `id` is above
        `after`."""
        return self._all(run_id, "events", after)

    def _all(self, run_id: str, what: str, after: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while page := self.get(f"{run_path(run_id)}/{what}?after={after}")[what]:
            found += page
            after = page[-1]["id"]
        return found

    def _json(self, answer: HTTPResponse) -> Any:
        try:
            with answer:
                return json.load(answer)
        except (OSError, HTTPException, ValueError) as error:
            raise self._silent(error) from None

    def _silent(self, why: object) -> RequestFailed:
        return RequestFailed(f"{self.url} does not answer as a Tinker server: {why}")

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        if error.code // 100 == 3:
            to = error.headers.get("Location", "elsewhere")
            return f"{self.url} sends its askers to {to}; use the URL that answers by itself."
        try:
            return str(json.load(error)["detail"])
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            return (
                f"{self.url} answered with the status {error.code}; is jupyter_tinker installed "
                f"beside that server?"
            )


def run_path(run_id: str) -> str:
    """Where a run is, below the URL."""
    return f"runs/{urllib.parse.quote(run_id, safe='')}"
