"""Starts real Jupyter servers for tests: processes of their own, with folders of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "a-token-of-the-tests"


@dataclass
class Server:
    """A running server and how to reach it."""

    home: Path
    port: int
    base_url: str
    process: subprocess.Popen[bytes]
    env: dict[str, str]
    token: str = TOKEN

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.base_url}"

    @property
    def url(self) -> str:
        """What a client sets as TINKER_BASE_URL."""
        return f"{self.root}tinker"

    @property
    def key(self) -> str:
        """What a client sets as TINKER_API_KEY."""
        return f"tml-{self.token}"

    @property
    def log(self) -> str:
        return (self.home / "server.log").read_text(errors="replace")

    def fetch(
        self,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        *,
        method: str | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status and JSON of a request to `path` below the server's root. `key=""` sends none."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(f"{self.root}{path}", data, method=method)
        sent = self.key if key is None else key
        for name, value in {"X-API-Key": sent, **(headers or {})}.items():
            if value:
                request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _json(error.read())

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `jupyter tinker ...` with this server's folders."""
        argv = [sys.executable, "-m", "jupyter_tinker.cli", *arguments]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=120)

    def lab_extensions(self) -> dict[str, str]:
        """The extensions that JupyterLab loads, and the file of each that comes first."""
        page = self.fetch(f"lab?token={self.token}")[1].decode()
        config = re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.DOTALL)
        assert config is not None, page
        extensions = json.loads(config[1])["federated_extensions"]
        return {extension["name"]: extension["load"] for extension in extensions}

    def engine_pid(self) -> int | None:
        """The engine's process, found among the server's children."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        for children in tasks.glob("*/children"):
            for pid in children.read_text().split():
                if b"jupyter_tinker.engine" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body


def start_server(
    home: Path,
    *,
    models: Mapping[str, Path],
    base_url: str = "/",
    app: Sequence[str] = ("-m", "jupyter_tinker.cli"),
    config: Mapping[str, Any] | None = None,
    port: int | None = None,
    probe: str = "tinker/status",
    env: Mapping[str, str] | None = None,
    python: Path | None = None,
) -> Server:
    """Start a server whose catalogue has `models` (name -> folder) as aliases, and wait until
    `probe` answers. `env` is added to its environment, and its PYTHONPATH goes first. `python` is
    an interpreter that sees nothing of this repository, instead of the tests' own."""
    for folder in ("data", "config", "runtime", "root", "hf"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    port = port or _free_port()
    settings: dict[str, Any] = {
        "ServerApp": {
            "port": port,
            "port_retries": 0,
            "ip": "127.0.0.1",
            "base_url": base_url,
            "root_dir": str(home / "root"),
            "allow_root": True,
            "open_browser": False,
        },
        "IdentityProvider": {"token": TOKEN},
        "TinkerExtension": {"engine_at_start": False},  # most tests need none, or one by and by
        "Catalog": {"aliases": {name: str(path) for name, path in models.items()}},
    }
    for section, traits in (config or {}).items():
        settings.setdefault(section, {}).update(traits)
    (home / "config" / "jupyter_server_config.json").write_text(json.dumps(settings))
    more = dict(env or {})
    ours = "" if python else str(Path(__file__).parent.parent)  # for tests.authorizers
    path = [more.pop("PYTHONPATH", ""), ours]
    env = {
        **os.environ,
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "HF_HOME": str(home / "hf"),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        **more,
    }
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [python or sys.executable, *app], env=env, cwd=home / "root", stdout=log, stderr=log
        )
    server = Server(home, port, base_url, process, env)
    _wait(server, probe)
    return server


def _wait(server: Server, probe: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if server.fetch(probe)[0] in (200, 403):
                return
        except OSError:
            time.sleep(0.05)
    server.stop(signal.SIGKILL)
    raise RuntimeError(f"The server did not come up:\n{server.log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
