"""Config files and overrides."""

from __future__ import annotations

from tests.bad_input_cases.case import (
    CHECK,
    Case,
)

CASES = [
    Case("config is a folder", CHECK, config=None, others={"job.yaml/x": ""}),
    Case("an override without a value", "check job.yaml trainer.epochs"),
    Case("an override with invalid YAML", "check job.yaml adapter={type:"),
    Case("an override below a value", "check job.yaml trainer.epochs.more=1"),
    Case("an override of the wrong type", "check job.yaml trainer.learning_rate=fast"),
    Case("a config of another tool", CHECK, config="model: llama\ndatasets: [{path: x, type: alpaca}]\nlora_r: 8\n"),
    Case(
        "an axolotl config",
        CHECK,
        config="base_model: a/b\nmicro_batch_size: 2\nsequence_len: 2048\nval_set_size: 0.1\n"
        "bf16: true\nadapter: qlora\n",
    ),
    Case(
        "a torchtune config",
        CHECK,
        config="model: {_component_: x.y}\nloss: {_component_: z}\nbatch_size: 2\noutput_dir: x\n",
    ),
    Case(
        "a Ludwig config without pipeline",
        CHECK,
        config="model_type: llm\nbase_model: a/b\ninput_features: []\noutput_features: []\n",
    ),
    Case("an override of an unknown task", "check job.yaml pipeline.tasks.review.weight=2"),
    Case("an override of an unknown retention eval", "check job.yaml pipeline.forgetting.evals.txt.limit=5"),
    Case("an override of a bundled retention eval", "check job.yaml pipeline.forgetting.evals.text.limit=5"),
    Case("an override below a short form", "check job.yaml pipeline.forgetting=ewc pipeline.forgetting.ewc.weight=3"),
    Case("an override with an empty value", "check job.yaml adapter="),
    Case(
        "an alias bomb",
        CHECK,
        config="a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}x]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    ),
]
