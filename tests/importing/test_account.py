"""Every key of a source is mapped, changed or dropped with a reason; nothing that a source holds ends in a traceback."""

import random

import pytest
import yaml

from pipelines.config.other_tools import IMPORTABLE
from pipelines.config.yaml_parser import read_yaml
from pipelines.errors import AlfineError
from pipelines.importing.importer import IMPORTERS, import_file
from pipelines.importing.summary import summary_lines
from pipelines.importing.yaml_writer import to_yaml

SOURCES = {
    "ludwig": {
        "model_type": "llm",
        "base_model": "o/n",
        "input_features": [{"name": "a", "type": "text"}],
        "output_features": [{"name": "b", "type": "text"}],
        "prompt": {"template": "{a}"},
        "adapter": {"type": "lora", "r": 4},
        "trainer": {"type": "finetune", "optimizer": {"type": "adamw"}},
        "preprocessing": {"split": {"type": "random", "probabilities": [0.8, 0.1, 0.1]}},
        "generation": {"max_new_tokens": 9},
        "quantization": {"bits": 4},
    },
    "llama_factory": {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": "o/n",
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": {"rows": {"file_name": "rows.json", "formatting": "sharegpt"}},
        "template": "qwen3",
        "cutoff_len": 64,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
    },
    "axolotl": {
        "base_model": "o/n",
        "datasets": [{"path": "o/rows", "type": "chat_template", "roles_to_train": ["assistant"]}],
        "sequence_len": 64,
        "micro_batch_size": 2,
        "val_set_size": 0.1,
        "adapter": "lora",
        "lora_r": 4,
        "lr_scheduler": "cosine",
        "special_tokens": {"pad_token": "x"},
        "sample_packing": True,
    },
}
WORDS = [
    "alpha",
    "r",
    "type",
    "prompt",
    "split",
    "wandb_project",
    "bf16",
    "frob",
    "column",
    "do_sample",
    "eta_min",
    "x y",
]
VALUES = [None, True, False, 0, 3, -1.5, "", "auto", "none", "{x", [], {}, [1, {"a": None}], {"type": 3}, "line\nline "]


def leaves(value, path=()):
    """The paths of all values that are no filled section or list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [leaf for key, child in items for leaf in leaves(child, (*path, key))]
    return below or [path]


def mutate(value, rng):
    """Adds a random key, or replaces a random value, somewhere in `value`."""
    here = value
    while True:
        inner = [
            child
            for child in (here.values() if isinstance(here, dict) else here)
            if isinstance(child, dict | list) and child
        ]
        if not inner or rng.random() < 0.3:
            break
        here = rng.choice(inner)
    replacement = rng.choice(VALUES)
    if isinstance(here, dict):
        here[rng.choice([*here, *WORDS])] = replacement
    else:
        here[rng.randrange(len(here))] = replacement


def test_every_importer_is_named_where_a_foreign_config_is_refused():
    assert {importer.tool for importer in IMPORTERS.values()} == set(IMPORTABLE)


@pytest.mark.parametrize("tool", sorted(SOURCES))
@pytest.mark.parametrize("seed", range(150))
def test_nothing_is_lost_in_silence(tool, seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    source = yaml.safe_load(yaml.safe_dump(SOURCES[tool]))
    for _ in range(rng.randrange(1, 5)):
        mutate(source, rng)
    path = tmp_path / "source.yaml"
    path.write_text(yaml.safe_dump(source, sort_keys=False))
    try:
        draft = import_file(path, ("rows.jsonl",))
    except AlfineError as error:
        assert all("\n" not in str(problem) for problem in error.problems)
        return
    to_yaml(draft.config, draft.comments, [])  # which compares what it has written with the config
    assert all(line.isprintable() for line in summary_lines(draft))
    tables = (draft.mapped, draft.changed, draft.dropped)
    for leaf in leaves(read_yaml(path).value):
        known = any(leaf[:length] in table for table in tables for length in range(1, len(leaf) + 1))
        assert known, leaf
    assert all(draft.dropped.values())
