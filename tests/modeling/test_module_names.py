"""Module names in the config must match the base model; errors suggest the name that was meant. No torch."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.config.job import load_job
from pipelines.errors import ConfigError, ModelError
from pipelines.modeling.model_folder import reject_adapter
from pipelines.modeling.module_names import Modules, check_module_names, defaults, weight_shapes

ATTENTION = {"q_proj": [8, 8], "k_proj": [4, 8], "v_proj": [4, 8], "o_proj": [8, 8]}
MLP = {"gate_proj": [12, 8], "up_proj": [12, 8], "down_proj": [8, 12]}
LLAMA = (
    {"model.embed_tokens.weight": [20, 8], "model.norm.weight": [8]}
    | {
        f"model.layers.{layer}.{block}.{name}.weight": shape
        for layer in range(2)
        for block, names in (("self_attn", ATTENTION), ("mlp", MLP))
        for name, shape in names.items()
    }
    | {f"model.layers.{layer}.input_layernorm.weight": [8] for layer in range(2)}
)
GPT2 = {
    "wte.weight": [20, 8],
    "h.0.ln_1.weight": [8],
    "h.0.attn.c_attn.weight": [8, 24],
    "h.0.attn.c_attn.bias": [24],
    "h.0.mlp.c_proj.weight": [8, 8],
}


def write_model(folder: Path, shapes=LLAMA, model_type="llama", **config) -> Path:
    """A model folder whose weights are zeros."""
    folder.mkdir(exist_ok=True)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(adapter=None, **trainer):
        config = {
            "pipeline": {
                "tasks": {"t": {"data": "rows.jsonl", "prompt": "{a}", "completion": "{b}"}},
                "forgetting": "none",
            },
            "base_model": "./base",
            "adapter": adapter,
            "trainer": {"epochs": 1, **trainer},
        }
        Path("job.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in config.items()))
        return load_job(Path("job.yaml"))

    return load


def messages_of(job, folder):
    with pytest.raises(ConfigError) as caught:
        check_module_names(job, folder)
    return [str(problem) for problem in caught.value.problems]


def lora(**more):
    return {"type": "lora", "r": 4, **more}


MATRICES = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
WRONG = {
    "one of two": (
        lora(target_modules=["q_proj", "v_prj"]),
        "adapter.target_modules: the base has no module v_prj; did you mean v_proj?",
    ),
    "another model's": (
        lora(target_modules=["query_key_value"]),
        "the base has no module query_key_value; its matrices are q_proj, k_proj",
    ),
    "a layer that is not there": (
        lora(target_modules=["layers.7.self_attn.q_proj"]),
        "no module layers.7.self_attn.q_proj; did you mean q_proj?",
    ),
    "a block": (
        lora(target_modules=["self_attn"]),
        "self_attn is a block of modules; name the matrices in it: q_proj, k_proj, v_proj, o_proj",
    ),
    "a norm": (
        lora(target_modules=["q_proj", "input_layernorm"]),
        "input_layernorm is not a matrix, so lora cannot adapt it; the matrices are",
    ),
    "rank_pattern": (
        lora(target_modules=["q_proj"], rank_pattern={"q_prj": 2}),
        "adapter.rank_pattern: the base has no module q_prj; did you mean q_proj?",
    ),
    "alpha_pattern": (
        lora(target_modules=["q_proj"], alpha_pattern={r"layers\.9\..*q_proj": 2}),
        "adapter.alpha_pattern: the base has no module",
    ),
    "a pattern beside the targets": (
        lora(target_modules=["q_proj"], rank_pattern={"down_proj": 2}),
        "down_proj is not a target of the adapter",
    ),
    "a pattern that is none": (
        lora(target_modules=["q_proj"], rank_pattern={"q_proj(": 2}),
        r"q_proj\( is not a regular expression",
    ),
    "a rank that is none": (
        lora(target_modules=["q_proj"], rank_pattern={"q_proj": 0}),
        "adapter.rank_pattern.q_proj: expected a whole number of at least 1, found 0",
    ),
    "feedforward": (
        {"type": "ia3", "target_modules": ["q_proj"], "feedforward_modules": ["fc1"]},
        "adapter.feedforward_modules: the base has no module fc1",
    ),
    "modules_to_save": (
        {"type": "ia3", "target_modules": ["q_proj"], "feedforward_modules": [], "modules_to_save": ["lm_haed"]},
        "adapter.modules_to_save: the base has no module lm_haed",
    ),
    "a part of a tied matrix": (
        lora(target_modules=["q_proj", "lm_head"], init_lora_weights="pissa"),
        "adapter.init_lora_weights: pissa subtracts a part of the matrices of target_modules, and one of them is the base's tied",
    ),
    "of another type": (
        {"type": "vera", "target_modules": ["q_proj", "k_porj"]},
        "adapter.target_modules: the base has no module k_porj; did you mean k_proj?",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_names_that_match_nothing_are_errors(job, tmp_path, case):
    adapter, message = WRONG[case]
    (line,) = messages_of(job(adapter), write_model(tmp_path / "base"))
    assert line.startswith("job.yaml:3: adapter.")
    import re

    assert re.search(message if "\\" in message else re.escape(message), line)


RIGHT = {
    "names": lora(target_modules=["q_proj", "v_proj"]),
    "paths": lora(target_modules=["model.layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "mlp.up_proj"]),
    "the tied head": lora(target_modules=["lm_head", "embed_tokens"]),
    "patterns": lora(
        target_modules=["q_proj", "v_proj"], rank_pattern={r"layers\.1\..*q_proj": 2}, alpha_pattern={"v_proj": 3}
    ),
    "norms": {"type": "ln_tuning", "target_modules": ["input_layernorm", "norm"]},
    "saved": {
        "type": "ia3",
        "target_modules": ["q_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
        "modules_to_save": ["lm_head", "mlp"],
    },
    "PEFT's own": lora(),
}


@pytest.mark.parametrize("case", RIGHT)
def test_names_that_match_are_accepted(job, tmp_path, case):
    check_module_names(job(RIGHT[case]), write_model(tmp_path / "base"))


def test_weight_names_without_the_models_prefix(job, tmp_path):
    folder = write_model(tmp_path / "base", GPT2, "gpt2")
    check_module_names(job(lora(target_modules=["c_attn", "transformer.h.0.mlp.c_proj"])), folder)
    (line,) = messages_of(job(lora(target_modules=["query", "c_attn"])), folder)
    assert "no module query; its matrices are c_attn, c_proj" in line


def test_a_model_type_without_default_targets(job, tmp_path):
    folder = write_model(tmp_path / "base", LLAMA, "arcee")
    assert messages_of(job(lora()), folder) == [
        f"job.yaml:3: adapter.target_modules is missing, and PEFT has no defaults for lora on arcee; write some of [{MATRICES}]"
    ]
    check_module_names(job(lora(target_modules=["q_proj"])), folder)


def test_models_whose_weights_are_renamed_while_loading_are_not_checked(job, tmp_path):
    assert "mixtral" in defaults()["renamed"] and "llama" not in defaults()["renamed"]
    check_module_names(job(lora(target_modules=["no_such"])), write_model(tmp_path / "base", LLAMA, "mixtral"))


FREEZING = {
    r"layers\.[0-3]\.": None,
    r"^model\.model\.layers\.0": None,
    r"layer\.0": "matches no weight of the model; the trained weights are named like model.model.embed_tokens.weight, model.model.layers.1.input_layernorm",
    r"model": "matches all 18 trained weights, so nothing would be trained",
}


@pytest.mark.parametrize("regex", FREEZING)
def test_a_freeze_regex_that_freezes_nothing_or_everything(job, tmp_path, regex):
    folder, one = write_model(tmp_path / "base"), job(layers_to_freeze_regex=regex)
    if FREEZING[regex] is None:
        check_module_names(one, folder)
    else:
        (line,) = messages_of(one, folder)
        assert line.startswith("job.yaml:4: trainer.layers_to_freeze_regex") and FREEZING[regex] in line


def test_weight_shapes_of_all_files(tmp_path):
    write_model(tmp_path / "a", {"x.weight": [2, 3]})
    write_model(tmp_path / "b", {"y.weight": [4]})
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "a" / "model-2.safetensors")
    assert weight_shapes(tmp_path / "a") == {"x.weight": (2, 3), "y.weight": (4,)}
    assert Modules(weight_shapes(tmp_path / "a")).matrices() == ["x"]


def test_an_adapter_is_not_a_base_model(tmp_path):
    folder = write_model(tmp_path / "base")
    reject_adapter(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    with pytest.raises(
        ModelError,
        match=r"has an adapter \(adapter_config.json\) next to the base's weights.*without the files adapter_\*",
    ):
        reject_adapter(folder)
    (folder / "config.json").unlink()
    with pytest.raises(
        ModelError, match=r"is an adapter of owner/name .*not a model; write base_model: owner/name, or merge"
    ):
        reject_adapter(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(
        ModelError, match=r"is an adapter \(adapter_config.json\), not a model; write base_model: its base"
    ):
        reject_adapter(folder)


def test_the_adapter_of_a_run_suggests_continue_from(tmp_path):
    folder = tmp_path / "runs" / "first" / "model"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder.parent / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="pipeline.continue_from: .*runs/first$"):
        reject_adapter(folder)


def test_check_of_module_names_does_not_import_torch(job, tmp_path):
    write_model(tmp_path / "base")
    Path("rows.jsonl").write_text('{"a": "x", "b": "y"}\n' * 20)
    job(lora(target_modules=["q_proj", "v_prj"]))
    code = (
        "import sys; from pipelines.cli import main\n"
        "try: main(['check', 'job.yaml'])\n"
        "except SystemExit as end: print(end.code)\n"
        "print([name for name in ('torch', 'ludwig', 'transformers', 'peft', 'safetensors.torch') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["2", "[]"]
    assert (
        ran.stderr == "error: job.yaml:3: adapter.target_modules: the base has no module v_prj; did you mean v_proj?\n"
    )
