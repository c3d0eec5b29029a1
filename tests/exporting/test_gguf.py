"""GGUF files by llama.cpp's converter and quantizer, asked the run's test prompts by llama.cpp.

They need the extra `gguf` (llama-cpp-python, compiled for 8 minutes), and are skipped without it.
"""

import importlib.util
import json
import shutil
import subprocess

import gguf
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipelines.exporting.gguf import _add_end_tokens, _reason, end_tokens
from pipelines.exporting.source import open_source
from pipelines.modeling.base_models import ensure_base_model
from tests.exporting.test_export import check_portable, exported, invoke
from tests.exporting.test_targets import check_of, one_line
from tests.jobs import run

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python: pip install '.[gguf]'"
)
pytestmark = [pytest.mark.ludwig, pytest.mark.model]


@pytest.fixture
def llama_project(project, monkeypatch):
    """The project with a base whose tokenizer llama.cpp's converter knows, and with rows of 256 weights."""
    monkeypatch.delenv("ALFINE_CACHE")
    packaged = ensure_base_model("smollm2-135m-instruct")
    shutil.rmtree(project / "base")
    tokenizer = AutoTokenizer.from_pretrained(packaged)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(project / "base")
    tokenizer.save_pretrained(project / "base")
    return project


def fields_of(folder):
    (file,) = folder.glob("*.gguf")
    reader = gguf.GGUFReader(file)
    return {name: field.contents() for name, field in reader.fields.items()}


@needs_llama_cpp
def test_llama_cpp_answers_as_the_run(llama_project):
    folder = run().folder
    exact = folder / "export" / "gguf"
    # A model with random weights may write tokens at which only llama.cpp ends an answer.
    assert invoke("export", folder, "--to", "gguf", "--quantize", "f32").exit_code in (0, 3)
    check = check_of(exact)
    assert check["must_be_equal"] and check["engine"] == "llama.cpp" and check["equal_prompts"] == check["rows"]
    assert check["equal_answers"] + check["ties"] >= check["rows"] - 3
    check_portable(exact, llama_project)
    fields = fields_of(exact)
    assert fields["general.name"] == "one" and fields["tokenizer.ggml.add_bos_token"] is False
    assert "<|im_start|>" in fields["tokenizer.chat_template"]
    assert "llama-cli -m one-f32.gguf" in (exact / "README.md").read_text()

    quantized = exported(folder, "--to", "gguf", "--quantize", "q4_k_m", "--check-rows", "0", "--force")
    assert fields_of(quantized)["general.file_type"] == 15 and check_of(quantized) is None
    assert [path.name for path in quantized.glob("*.gguf")] == ["one-q4_k_m.gguf"]
    assert "It was not checked." in (quantized / "README.md").read_text()

    ollama = folder / "export" / "ollama"
    assert invoke("export", folder, "--to", "ollama").exit_code in (0, 3)
    assert check_of(ollama)["equal_prompts"] == check_of(ollama)["rows"]
    modelfile = (ollama / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./one-q8_0.gguf\n") and 'PARAMETER stop "<|im_end|>"' in modelfile
    assert "PARAMETER temperature 0\nPARAMETER repeat_penalty 1.0\nPARAMETER num_predict 6\n" in modelfile
    assert "{{ range .Messages }}" in modelfile and "SYSTEM " in modelfile  # that of the template


@needs_llama_cpp
def test_a_stop_token_that_llama_cpp_does_not_know_is_added(llama_project):
    folder = run().folder
    source = open_source(folder)
    file = exported(folder, "--to", "gguf", "--quantize", "f32", "--check-rows", "0") / "one-f32.gguf"
    assert set(source.prompt_format.stop_ids) <= set(end_tokens(file))
    unknown = source.prompt_format.tokenizer.convert_tokens_to_ids("the")
    assert unknown not in end_tokens(file)
    source.prompt_format.stop_ids = [*source.prompt_format.stop_ids, unknown]
    _add_end_tokens(source, file)
    assert unknown in end_tokens(file) and fields_of(file.parent)["tokenizer.ggml.eot_token_id"] == unknown


def test_without_llama_cpp_the_options_say_what_is_possible(llama_project, monkeypatch):
    monkeypatch.setattr("pipelines.exporting.gguf.has_llama_cpp", lambda: False)
    folder = run().folder
    one_line(invoke("export", folder, "--to", "gguf"), "pip install 'alfine[gguf]'", "--check-rows 0", code=1)
    one_line(
        invoke("export", folder, "--to", "ollama", "--quantize", "q4_k_m", "--check-rows", "0"),
        "--quantize q8_0",
        code=1,
    )
    written = exported(folder, "--to", "gguf", "--check-rows", "0")
    notes = json.loads((written / "export.json").read_text())["notes"]
    assert any("Without llama-cpp-python" in note for note in notes)


def test_an_unsupported_tokenizer_is_one_line(project, monkeypatch):
    monkeypatch.delenv("ALFINE_CACHE")
    monkeypatch.setattr("pipelines.exporting.export.require_llama_cpp", lambda *arguments: None)
    folder = run().folder
    result = invoke("export", folder, "--to", "gguf", "--quantize", "f16", "--check-rows", "0")
    one_line(result, "llama.cpp's converter does not support this model", "--to merged")
    assert not (folder / "export" / "gguf").exists() and not list((folder / "export").iterdir())


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "INFO:hf-to-gguf:Loading\nERROR:hf-to-gguf:Model FooForCausalLM is not supported\n",
            "Model FooForCausalLM is not supported",
        ),
        (
            "Traceback (most recent call last):\n  File x\nNotImplementedError: BPE pre-tokenizer was not recognized\n",
            "NotImplementedError: BPE pre-tokenizer was not recognized",
        ),
        ("", "no message"),
    ],
)
def test_the_reason_of_the_converter_is_given(output, reason):
    assert _reason(subprocess.CompletedProcess([], 1, "", output)) == reason
