"""From base_model to a folder; every error is one line."""

import json

import pytest

from pipelines.errors import ModelError
from pipelines.modeling.base_models import context_length, ensure_base_model, load_tokenizer
from pipelines.modeling.content_hash import fingerprint
from tests.tiny import make_model


def test_a_model_folder_is_its_own_base(tmp_path):
    folder = make_model(tmp_path / "m")
    assert ensure_base_model(str(folder)) == folder
    assert context_length(folder) == 512
    first = fingerprint(folder)
    make_model(tmp_path / "m", seed=1)
    assert fingerprint(folder) != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2", "did you mean smollm2-135m-instruct"),
        ("./nowhere", "no such folder"),
        ("no model at all", "nor an id on the Hub"),
    ],
)
def test_unknown_models(name, message):
    with pytest.raises(ModelError, match=message):
        ensure_base_model(name)


def test_folders_without_safetensors(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        ensure_base_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no .safetensors file with weights"):
        ensure_base_model(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"only in pytorch_model\.bin, a pickle file"):
        ensure_base_model(str(tmp_path))


def test_an_unreachable_hub_suggests_the_packaged_model(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="Hub cannot be reached.*smollm2-135m-instruct needs no Hub"):
        ensure_base_model("someone/some-model-1b")


def test_a_tokenizer_without_eos_token(tmp_path):
    folder = make_model(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ModelError, match="has no eos_token"):
        load_tokenizer(folder)


def test_custom_code_is_not_executed(tmp_path):
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "modeling.py").write_text("raise SystemExit('was run')")
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "ours", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}})
    )
    with pytest.raises(ModelError, match="requires custom code.*does not execute"):
        ensure_base_model(str(folder))


def test_links_out_of_the_folder_are_errors(tmp_path):
    folder = make_model(tmp_path / "m")
    (tmp_path / "secret").write_text("{}")
    (folder / "added_tokens.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=r"added_tokens\.json is a link to a file outside"):
        ensure_base_model(str(folder))
    (folder / "added_tokens.json").unlink()
    (folder / "special_tokens_map.json").symlink_to("tokenizer_config.json")
    assert ensure_base_model(str(folder)) == folder


def test_links_of_the_hub_cache_to_its_blobs_are_allowed(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    make_model(snapshot)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    (snapshot / "model.safetensors").rename(blobs / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert ensure_base_model(str(snapshot)) == snapshot


def test_a_config_that_is_not_json(tmp_path):
    folder = make_model(tmp_path / "m")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        ensure_base_model(str(folder))
