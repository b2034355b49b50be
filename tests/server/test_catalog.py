"""The catalogue: what is found, under which name, and what is never looked at."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from jupyter_tinker.server.catalog import Catalog, UnknownModelError, format_models
from jupyter_tinker.server.model_folder import MANIFEST, InvalidModelError, inspect_folder

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 2048,
    "vocab_size": 384,
}


def make_model(folder: Path, config: dict[str, Any] | None = None, **files: str) -> Path:
    """A folder with the names of a model's files, and nothing much in them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    for name, content in (files or {"model.safetensors": "weights"}).items():
        (folder / name).write_text(content)
    return folder


def make_cached(cache: Path, name: str, **files: str) -> Path:
    """A model as huggingface_hub caches it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    return make_model(repository / "snapshots" / "abc123", **files)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(models_dir=str(tmp_path / "models"), hub_cache=str(tmp_path / "hub"))


def test_nothing_there(catalog: Catalog) -> None:
    assert catalog.models() == []
    with pytest.raises(UnknownModelError, match=r"There is none yet.*jupyter tinker pull NAME"):
        catalog.resolve("smollm2-135m")


def test_pulled_model(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "models" / "small")
    (folder / MANIFEST).write_text('{"hub_id": "org/small-original"}')
    (folder / "tokenizer.json").write_text("{}")

    model = catalog.resolve("small")
    assert (model.name, model.path, model.hub_id) == ("small", folder, "org/small-original")
    assert (model.context_length, model.vocab_size) == (2048, 384)
    assert model.architecture == "LlamaForCausalLM"
    assert model.tokenizer
    assert [model.name for model in catalog.models()] == ["small"]

    by_hub_id = catalog.resolve("org/small-original")
    assert by_hub_id.path == folder
    assert by_hub_id.name == "org/small-original"


def test_the_unknown_is_answered_with_what_there_is(catalog: Catalog, tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "small")
    catalog.aliases = {"big/one": "small"}
    with pytest.raises(UnknownModelError, match=r"no base model 'nope'.*There is: big/one, small"):
        catalog.resolve("nope")


def test_errors_are_picklable() -> None:
    for error in (UnknownModelError("a"), InvalidModelError("b")):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_hub_cache(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_cached(tmp_path / "hub", "org/cached")
    make_cached(tmp_path / "hub", "org/tokenizer-only", **{"tokenizer.json": "{}"})
    (tmp_path / "hub" / "datasets--org--data").mkdir()
    assert [model.name for model in catalog.models()] == ["org/cached"]
    assert catalog.resolve("org/cached").path == folder
    with pytest.raises(UnknownModelError, match="has no safetensors weights"):
        catalog.resolve("org/tokenizer-only")


def test_the_hubs_own_weights_go_before_a_packages(catalog: Catalog, tmp_path: Path) -> None:
    pulled = make_model(tmp_path / "models" / "small")
    (pulled / MANIFEST).write_text('{"hub_id": "org/small"}')
    assert catalog.resolve("org/small").path == pulled
    tokenizer = make_cached(tmp_path / "hub", "org/small", **{"tokenizer.json": "{}"})
    assert catalog.resolve("org/small").path == pulled, "only a tokenizer is cached"
    (tokenizer / "model.safetensors").write_text("weights")
    assert catalog.resolve("org/small").path == tokenizer


def test_alias_of_a_name_and_of_a_folder(catalog: Catalog, tmp_path: Path) -> None:
    pulled = make_model(tmp_path / "models" / "small")
    elsewhere = make_model(tmp_path / "elsewhere")
    catalog.aliases = {
        "meta-llama/Llama-3.2-1B": str(elsewhere),
        "two-steps": "one-step",
        "one-step": "small",
        "broken": str(tmp_path / "gone"),
    }
    llama = catalog.resolve("meta-llama/Llama-3.2-1B")
    assert (llama.name, llama.path) == ("meta-llama/Llama-3.2-1B", elsewhere)
    assert catalog.resolve("two-steps").path == pulled
    names = {model.name for model in catalog.models()}
    assert names == {"meta-llama/Llama-3.2-1B", "two-steps", "one-step", "small"}
    with pytest.raises(UnknownModelError, match=r"gone is not a model: it has no config.json"):
        catalog.resolve("broken")


def test_alias_loop(catalog: Catalog) -> None:
    catalog.aliases = {"a": "b", "b": "c", "c": "a", "self": "self"}
    with pytest.raises(UnknownModelError, match="in a circle: a -> b -> c"):
        catalog.resolve("a")
    with pytest.raises(UnknownModelError, match="in a circle: self"):
        catalog.resolve("self")
    assert catalog.models() == []


def test_an_alias_may_carry_the_name_of_its_target_folder(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "x")
    catalog.aliases = {"Qwen/Qwen3-8B-Base": str(folder)}
    assert catalog.resolve("Qwen/Qwen3-8B-Base").path == folder
    assert "Qwen/Qwen3-8B-Base" in format_models(catalog.models())


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..",
        "a/../../secret",
        "a/..",
        "/etc",
        "~/secret",
        "C:\\models",
        "..\\secret",
        "small\0",
        "\0",
        "",
        ".",
        ".hidden",
        "a/b/c",
        "a--b",
        "a" * 5000,
        "smøl",
    ],
)
def test_names_that_touch_no_disk(
    catalog: Catalog, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "secret")
    make_model(tmp_path / "models" / "small")
    catalog.models()  # the listing is read already

    def touched(*arguments: object, **options: object) -> None:
        raise AssertionError(f"the disk was touched: {arguments}")

    for method in ("open", "stat", "is_dir", "is_file", "read_text", "iterdir", "exists"):
        monkeypatch.setattr(Path, method, touched)
    with pytest.raises(UnknownModelError, match="There is: small"):
        catalog.resolve(name)


def test_a_folder_by_its_path(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "anywhere")
    assert catalog.resolve(str(folder), allow_path=True).path == folder
    with pytest.raises(UnknownModelError):
        catalog.resolve(str(folder))
    for odd in ("\0", f"{folder}\0", str(tmp_path / "gone")):
        with pytest.raises(UnknownModelError):
            catalog.resolve(odd, allow_path=True)
    catalog.allow_paths = False
    with pytest.raises(UnknownModelError):
        catalog.resolve(str(folder), allow_path=True)


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        ({"architectures": ["BertModel"]}, {}, "holds BertModel; only causal language models"),
        ({}, {}, "a model of no named architecture"),
        ({"architectures": "LlamaForCausalLM"}, {}, "a model of no named architecture"),
        (LLAMA, {"pytorch_model.bin": ""}, "pytorch_model.bin is pickled"),
        (LLAMA, {"tokenizer.json": ""}, "has no safetensors weights"),
        (LLAMA, {"model.safetensors.index.json": "{}"}, "is not an index"),
        (LLAMA, {"model.safetensors.index.json": '{"weight_map": [1]}'}, "is not an index"),
        (
            LLAMA,
            {"model.safetensors.index.json": '{"weight_map": {"a": "../b.safetensors"}}'},
            "names files outside its folder",
        ),
        (
            LLAMA,
            {"model.safetensors.index.json": '{"weight_map": {"a": "b.safetensors"}}'},
            "is incomplete: b.safetensors is missing",
        ),
    ],
)
def test_refused_by_name(
    tmp_path: Path, config: dict[str, Any], files: dict[str, str], message: str
) -> None:
    folder = make_model(tmp_path / "model", config, **files)
    with pytest.raises(InvalidModelError, match=message):
        inspect_folder(folder, "model")


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_config_that_is_none(tmp_path: Path, text: str) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InvalidModelError, match=r"config\.json is not"):
        inspect_folder(folder, "model")


def test_sharded_weights(tmp_path: Path) -> None:
    index = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    folder = make_model(
        tmp_path / "model",
        **{
            "model.safetensors.index.json": index,
            "model-1.safetensors": "1",
            "model-2.safetensors": "2",
        },
    )
    assert inspect_folder(folder, "model").path == folder


def test_broken_manifest_is_no_crash(catalog: Catalog, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "models" / "small")
    (folder / MANIFEST).write_text("{")
    assert catalog.models() == []
    with pytest.raises(UnknownModelError):
        catalog.resolve("small")


def test_the_listing_is_kept_for_a_moment(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    assert catalog.models() == []
    make_model(tmp_path / "models" / "small")
    assert catalog.models() == []
    assert catalog.resolve("small").name == "small", "a name is always looked up afresh"
    now = 200.0
    assert [model.name for model in catalog.models()] == ["small"]


def test_real_files(tiny_model_dir: Path, catalog: Catalog) -> None:
    model = catalog.resolve(str(tiny_model_dir), allow_path=True)
    assert (model.context_length, model.vocab_size, model.tokenizer) == (512, 384, True)
    assert model.size_on_disk > 100_000


def test_configuration() -> None:
    config = Config({"Catalog": {"aliases": {"a": "b"}, "allow_paths": False}})
    catalog = Catalog(config=config)
    assert catalog.aliases == {"a": "b"}
    assert not catalog.allow_paths
    assert Path(catalog.models_dir).parts[-2:] == ("tinker", "models")
    for trait in Catalog.class_own_traits(config=True).values():
        assert len(trait.help) > 40


def test_imports_nothing_heavy() -> None:
    code = """
import sys
import jupyter_tinker.server.catalog, jupyter_tinker.server.pull
print(*{"torch", "transformers", "numpy", "huggingface_hub"} & set(sys.modules))
"""
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True).strip() == ""
