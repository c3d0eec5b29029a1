"""The base model's own answers to general instructions: exactly the tokens that it generated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.conversation import Conversation
from pipelines.errors import DataError
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.evaluation.general_text import (
    MAX_ANSWER_TOKENS,
    encode_answers,
    generate_general_answers,
    load_replay_rows,
)
from tests.tiny import make_model


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    return LoadedModel.from_folder(make_model(tmp_path / "base", "r1_like"))


def test_answers_keep_the_tokens_of_the_thought(tmp_path: Path, loaded: LoadedModel) -> None:
    file, instructions = tmp_path / "instructions.jsonl", ["the tea", "a gate", "nine"]
    file.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in instructions))
    prompt_format = loaded.prompt_format
    for load in (lambda: loaded, pytest.fail):  # the second time the answers come from the cache
        answers = generate_general_answers(load, prompt_format, "f", file, None)
        sequences = encode_answers(prompt_format, answers, None)
    prompts = [prompt_format.encode(Conversation.single_turn(text)).prompt_ids for text in instructions]
    completions = complete(loaded, prompts, {"do_sample": False}, [MAX_ANSWER_TOKENS] * 3)
    expected = [[*prompt, *one.tokens] for prompt, one in zip(prompts, completions, strict=True) if len(one.tokens) > 1]
    assert [np.asarray(ids).tolist() for ids in sequences.input_ids] == expected


def test_replay_rows_with_a_thought_are_written_as_the_model_writes_it(tmp_path: Path, loaded: LoadedModel) -> None:
    file = tmp_path / "replay.jsonl"
    file.write_text(json.dumps({"prompt": "tea?", "completion": "<think>\nso\n</think>\n\nyes"}) + "\n")
    (ids,) = load_replay_rows(loaded.prompt_format, file, None).input_ids
    text = loaded.prompt_format.tokenizer.decode(ids.tolist())
    assert text.endswith("assistant\n<think>\nso\n</think>\n\nyes<|im_end|>") and text.count("<think>") == 1
    file.write_text(json.dumps({"prompt": "tea?", "completion": "<think>\nso"}) + "\n")
    with pytest.raises(DataError, match="replay.jsonl:1: the completion begins a thought"):
        load_replay_rows(loaded.prompt_format, file, None)
