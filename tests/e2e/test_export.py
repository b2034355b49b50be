"""What was trained through the API is taken along by `jupyter tinker export`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.raw import RawRun, some_data

pytestmark = pytest.mark.e2e


def test_export_with_a_server_and_without(start, tiny_model_dir: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tests.engine.reference import load_peft

    server = start()
    run = RawRun(server)
    for step in range(2):
        run.result(run.forward_backward(2 * step + 1, some_data(step)))
        run.result(run.optim_step(2 * step + 2))
    run.result(run.submit("save_weights", 5, path="trained"))
    adapter, merged, file = (str(tmp_path / name) for name in ("adapter", "merged", "m.gguf"))
    done = server.command("export", run.id, adapter)
    assert done.returncode == 0, done.stderr
    assert "use --merged" in done.stderr  # the tiny model's output layer is its embedding
    server.stop()
    path = f"tinker://{run.id}/weights/trained"
    for arguments in ((path, merged, "--merged"), (run.id, file, "--gguf", "--dtype=q8_0")):
        done = server.command("export", *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[:2] == ["Starting torch", "Loading tiny"], "and no bar"
        assert done.stdout == f"{arguments[1]} holds {path}, merged into tiny\n"
    tokens = torch.arange(5, 30)[None]
    with torch.no_grad():
        expected = load_peft(tiny_model_dir, Path(adapter)).eval()(input_ids=tokens).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)(input_ids=tokens).logits
        got = AutoModelForCausalLM.from_pretrained(merged)(input_ids=tokens).logits
        packed = AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="m.gguf", dtype=torch.float32
        )(input_ids=tokens).logits
    change = (expected - base).abs().max()
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (packed - expected).abs().max() < 0.1 * change
