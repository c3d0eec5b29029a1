"""The model card: valid metadata of the Hub, no local path, no text that acts as Markdown."""

import pytest
from huggingface_hub import ModelCard

from pipelines.exporting.model_card import fenced
from pipelines.exporting.portable import portable, portable_command


def test_paths_of_this_machine_become_names(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    config = {
        "pipeline": {
            "tasks": {"t": {"data": str(tmp_path / "rows.jsonl"), "prompt": "/no_think {q}", "completion": "~ {a}"}},
            "continue_from": "/gone/runs/first",
            "report": {"sample_prompts": "data/prompts.jsonl"},
        },
        "base_model": "~/models/mine",
        "other": [str(tmp_path), "/not/there", 3, None],
    }
    assert portable(config) == {
        "pipeline": {
            "tasks": {"t": {"data": "rows.jsonl", "prompt": "/no_think {q}", "completion": "~ {a}"}},
            "continue_from": "first",
            "report": {"sample_prompts": "data/prompts.jsonl"},
        },
        "base_model": "mine",
        "other": [tmp_path.name, "/not/there", 3, None],
    }


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("alfine run job.yaml --name one", "alfine run job.yaml --name one"),
        ("alfine run /home/anna/job.yaml --name one", "alfine run job.yaml --name one"),
        (
            "alfine run job.yaml base_model=/models/mine trainer.epochs=2",
            "alfine run job.yaml base_model=mine trainer.epochs=2",
        ),
        ("alfine run 'a b.yaml'", "alfine run 'a b.yaml'"),
    ],
)
def test_commands_are_portable(command, expected):
    assert portable_command(command) == expected


def test_code_is_fenced_with_more_backticks_than_it_has():
    assert fenced("a ``` b ```` c").splitlines()[0] == "`````"


@pytest.mark.ludwig
def test_the_card_of_a_run(project):
    from tests.exporting.test_export import exported
    from tests.jobs import run

    folder = exported(run().folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "unknown" and card.data.library_name == "transformers" and "alfine" in card.data.tags
    assert card.data.base_model is None  # the base is a folder, which the Hub does not have
    results = {result.dataset_name: result for result in card.data.eval_results}
    assert set(results) == {"odd", "say"} and results["odd"].metric_type == "exact_match"
    assert card.data.model_name == "one"
    for section in (
        "Results",
        "What it forgot",
        "Intended use",
        "Limits",
        "Training",
        "Check of this export",
        "License",
    ):
        assert f"\n## {section}\n" in card.text
    assert (
        "**Passed.**" in card.text
        and "alfine run job.yaml --name one" in card.text
        and "Write the base's license" in card.text
    )
    assert "odd.jsonl" in card.text and (folder / "scores.png").read_bytes().startswith(b"\x89PNG")
