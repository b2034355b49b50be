"""What earlier releases of the SDK need."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tornado.httpclient import HTTPClientError

from jupyter_tinker.server.legacy import Archive
from jupyter_tinker.server.service import TinkerService
from tests.server.stored import Ask, add_checkpoint, add_run, new_session

pytest_plugins = ["pytest_jupyter.jupyter_server"]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 2**20 + 1])
def test_an_archive_is_what_tar_reads(tmp_path: Path, size: int) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * size)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "optimizer.safetensors").write_bytes(b"moments")
    archive = Archive.of(tmp_path)
    data = b"".join(archive.chunks())
    assert len(data) == archive.size
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        read = {member.name: tar.extractfile(member).read() for member in tar}
    assert read == {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": b"x" * size,
        "checkpoint_complete": b"",
    }


async def test_an_archive_is_fetched_by_a_signed_url(
    ask: Ask, service: TinkerService, http_server_client
) -> None:
    run = add_run(service, await new_session(ask))
    await add_checkpoint(service, run, "a")
    route = ("training_runs", run, "checkpoints", "weights")
    answer = await ask("GET", *route, "a", "archive")
    url = urlsplit(answer["url"])
    body = (await http_server_client.fetch(f"{url.path}?{url.query}")).body
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        assert "adapter_model.safetensors" in tar.getnames()
    with pytest.raises(HTTPClientError) as refused:
        await http_server_client.fetch(f"{url.path}?{url.query}0")
    assert refused.value.code == 403
    assert (await ask("GET", *route, "b", "archive"))[0] == 404
    assert (await ask("GET", *route, "a", "archive", key="tml-wrong"))[0] == 401
