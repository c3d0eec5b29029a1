"""A model card names the base for other machines, without a local path."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.training.model_card import write_model_card


def job(base_model, continue_from=None):
    return SimpleNamespace(
        base_model=base_model,
        pipeline=SimpleNamespace(continue_from=continue_from, tasks={"reviews": None, "code": None}),
    )


BASES = {
    "hub": (job("owner/name"), "/x/hub/models--owner--name/snapshots/0a1b", "owner/name", "0a1b"),
    "packaged": (
        job("smollm2-135m-instruct"),
        "/x/cache/models/smollm2-135m-instruct-1",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        None,
    ),
    "folder": (job("/home/someone/models/mine"), "/home/someone/models/mine", "mine", None),
    "continue_from": (
        job("owner/name", continue_from="/home/someone/runs/first"),
        "/home/someone/runs/second/start",
        "first-merged",
        None,
    ),
}


@pytest.mark.parametrize("case", BASES)
def test_the_base_is_named_without_a_local_path(tmp_path, case):
    job, base, name, revision = BASES[case]
    peft_config = {"base_model_name_or_path": base, "revision": None, "r": 4, "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config))
    (tmp_path / "README.md").write_text(f"---\nbase_model: {base}\n---\n[More Information Needed]")
    write_model_card(tmp_path, job, Path(base), "c0ffee")
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        **peft_config,
        "base_model_name_or_path": name,
        "revision": revision,
    }
    card = (tmp_path / "README.md").read_text()
    assert f"base_model: {name}\n" in card and "reviews, code" in card and "More Information" not in card
    assert f'AutoModelForCausalLM.from_pretrained("{name}")' in card and "PeftModel.from_pretrained(base" in card
    assert "c0ffee" in card or revision in card
    for path in tmp_path.iterdir():
        assert "/home/" not in path.read_text() and "/x/" not in path.read_text()


def test_the_card_of_a_full_model_does_not_load_the_base(tmp_path):
    write_model_card(tmp_path, job("owner/name"), Path("/x/snapshots/0a1b"), "c0ffee")
    card = (tmp_path / "README.md").read_text()
    assert "library_name: transformers" in card and 'from_pretrained("FOLDER")' in card and "peft" not in card
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
