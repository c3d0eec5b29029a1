"""YAML: numbers, texts, anchors, and files that are not configs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipelines.config.job import load_job
from tests.bad_configs import GOOD, task
from tests.config.problems import Write, problems


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2e-4", 2e-4),
        ("2E-4", 2e-4),
        ("2.e-4", 2e-4),
        (".5", 0.5),
        ("1e+0", 1.0),
        ("1_000e-4", 0.1),
        ("1", 1),
    ],
)
def test_number_formats(write: Write, written: str, value: float) -> None:
    assert load_job(write(GOOD.replace("2e-4", written))).ludwig["trainer"]["learning_rate"] == value


@pytest.mark.parametrize("text", ["2024-01-01", "12:30", "010", "0x1F", "1.2.3", "e5"])
def test_texts_that_yaml_1_1_would_convert(write: Write, text: str) -> None:
    assert load_job(write(task(f"system: {text}"))).pipeline.tasks["sentiment"].system == text


def test_anchors_and_merge_keys(write: Write) -> None:
    job = load_job(
        write("""\
        pipeline:
          tasks:
            a: &base {data: a.csv, prompt: "{x}", completion: "{y}", metric: exact_match}
            b:
              <<: *base
              data: b.csv
        base_model: ./m
        """)
    )
    assert job.pipeline.tasks["b"].data == "b.csv"
    assert job.pipeline.tasks["b"].metric == "exact_match"
    assert (
        job.line_of("pipeline", "tasks", "b", "data"),
        job.line_of("pipeline", "tasks", "b", "metric"),
    ) == (6, 3)


def test_a_byte_order_mark_is_ignored(write: Write) -> None:
    assert load_job(write(b"\xef\xbb\xbf" + GOOD.encode()))


@pytest.mark.parametrize(
    ("name", "message"),
    [("no.yaml", "no such file"), ("folder", "is a directory"), ("a\0b", "cannot be read")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (problem,) = problems(tmp_path / name)
    assert message in problem.message


def test_a_large_file_is_no_config(write: Write) -> None:
    (problem,) = problems(write(b"a: 1\n" * 30_000))
    assert "config file exceeds 100 kB" in problem.message


@pytest.mark.parametrize(
    "link",
    ["[*{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}]", "{{<<: [*{0}, *{0}, *{0}, *{0}, *{0}]}}"],
)
def test_an_alias_bomb_is_refused_immediately(write: Write, link: str) -> None:
    lines = ["a0: &a0 {x: 1}"] + [f"a{level}: &a{level} {link.format(f'a{level - 1}')}" for level in range(1, 12)]
    started = time.perf_counter()
    (problem,) = problems(write("\n".join(lines)))
    assert "more than 20000 values" in problem.message
    assert time.perf_counter() - started < 2
