"""Scores of single completions, with built-in and custom metrics."""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config.job import load_job
from pipelines.errors import AlfineError, ConfigError, DataError
from pipelines.scoring.metric import METRICS, Score, check_row, metric_from_key, metric_key
from pipelines.scoring.unicode_text import make_label_finder, normalize_label


def line(completion: str = "", reference: str = "", loss: Any = 1.0, **fields: Any) -> dict[str, Any]:
    """A line of completions.jsonl."""
    return {
        "task": "chores",
        "row": 7,
        "prompt": "",
        "reference": reference,
        "completion": completion,
        "reference_nll": loss,
        "fields": fields,
    }


def value(name: str, *args: Any, **fields: Any) -> float | None:
    return metric_from_key(name).score(line(*args, **fields)).value


LABELS = [
    ("positive", "positive", True),
    ("Positive.", "positive", True),
    ("  POSITIVE \n", "positive", True),
    ('"Positive."', "positive", True),
    ("“positive”!", "positive", True),
    ("'positive'...", "positive", True),
    ("positive…", "positive", True),
    ("very\n  positive", "very positive", True),
    ("ｐｏｓｉｔｉｖｅ", "positive", True),  # full-width forms
    ("STRASSE", "straße", True),
    ("cafe\u0301", "café", True),
    ("3.5", "3.5", True),
    ("?", "?", True),
    ("?", "!", False),
    ("", "?", False),
    ("", "positive", False),
    ("positive", "negative", False),
    ("The review is positive", "positive", False),
    ("not positive", "positive", False),
    ("positive negative", "positive", False),
    ("-1", "1", False),
    ("3.5", "35", False),
]


@pytest.mark.parametrize(("completion", "reference", "right"), LABELS)
def test_exact_match(completion: str, reference: str, right: bool) -> None:
    assert value("exact_match", completion, reference) == (100.0 if right else 0.0)


def contains_only_label(completion: str, reference: str, labels: list[str]) -> bool:
    return make_label_finder([reference, *labels], normalize_label)(completion) == {normalize_label(reference)}


CONTAINED_LABELS = [
    ("positive", "positive", True),
    ("I think this one is Positive, clearly.", "positive", True),
    ("positive, positive!", "positive", True),
    ("**positive**", "positive", True),
    ("positive or negative?", "positive", False),
    ("It is negative.", "positive", False),
    ("positively", "positive", False),
    ("nonpositive", "positive", False),
    ("", "positive", False),
    ("It is very positive.", "very positive", True),
    ("It is very positive.", "positive", False),
    ("very positively positive", "positive", True),
]


@pytest.mark.parametrize(("completion", "reference", "right"), CONTAINED_LABELS)
def test_contained_label(completion: str, reference: str, right: bool) -> None:
    assert contains_only_label(completion, reference, ["positive", "negative", "very positive"]) is right


def test_contained_label_with_punctuation_and_without_other_labels() -> None:
    assert contains_only_label("It costs C++ (really)", "c++", ["c", "c++"])
    assert contains_only_label("yes it is", "yes", [])
    assert not contains_only_label("", "", [])


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "the sat on the mat": 5 of 6 and 5 of 5 words.
    assert value("rouge", "The cat sat on the mat.", "the sat on the mat") == pytest.approx(100 * 10 / 11)
    assert value("rouge", "running dogs", "runs dog") == 100.0  # stems
    assert value("rouge", "mat the on", "on the mat") == pytest.approx(100 / 3)  # order counts


def test_chrf_is_sacrebleu_chrf2() -> None:
    from sacrebleu import sentence_chrf

    expected = sentence_chrf("a good battery", ["the battery is good"]).score
    assert value("chrf", "a good battery", "the battery is good") == pytest.approx(expected)
    assert 0 < expected < 100


@pytest.mark.parametrize("name", ["rouge", "chrf"])
def test_equal_texts_score_100_and_different_ones_0(name: str) -> None:
    assert value(name, "a good battery", "a good battery") == pytest.approx(100.0)
    assert value(name, "xxx", "a good battery") == 0.0
    assert value(name, "", "a good battery") == 0.0
    assert value(name, "a good battery", "") == 0.0


def test_ascii_texts_have_the_scores_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    original = RougeScorer(["rougeL"], use_stemmer=True)
    words = st.sampled_from(
        [
            "The",
            "running",
            "dogs'",
            "U.S.",
            "e-mail_x",
            "3.5",
            "ponies",
            "happily,",
            "generously",
            "don't",
            "AGREED!",
            "is",
            "--",
        ]
    )
    texts = st.text(st.characters(max_codepoint=127)) | st.lists(words).map(" ".join)

    @given(texts, texts)
    @settings(max_examples=500, deadline=None)
    def same(left: str, right: str) -> None:
        if re.search("[a-zA-Z0-9]", left):
            assert value("rouge", left, right) == 100 * original.score(right, left)["rougeL"].fmeasure

    same()


TEXTS = {
    "Chinese": ("这家餐厅的菜很好吃，2024年我们还会再来。", "服务太慢"),
    "Japanese": ("この映画は本当に面白かったです。", "値段ガ高スギル"),
    "Korean": ("이 식당은 정말 맛있습니다.", "가격 너무 비쌌다"),
    "Thai": ("อาหารอร่อยมาก", "บริษัท"),
    "Lao": ("ອາຫານ", "ລົດໃຫຍ່"),
    "Khmer": ("ម្ហូបនេះ", "ចាស់ៗ"),
    "Burmese": ("အစားအစာ", "ကောင်း"),
    "Hindi": ("खाना बहुत स्वादिष्ट था।", "फिर मिले"),
    "Arabic": ("كان الطعام لذيذًا", "غيّر"),
    "Hebrew": ("האוכל היה טעים", "רכבנו"),
    "Russian": ("Еда была очень вкусной.", "Пришли"),
    "Greek": ("Το φαγητό ήταν", "μέγκδ"),
    "Vietnamese": ("Món ăn này", "đẹp qúa"),
    "Amharic": ("ምግቡ ጣፋጭ ነበር።", "ሰላም"),
    "Tamil": ("உணவு மிகவும் சுவை", "நன்றி"),
    "Tibetan": ("ཁ་ལག་ཞིམ་པོ།", "དཔེ་དེབ"),
    "emoji": ("👍🏽🎉", "💔"),
}


@pytest.mark.parametrize("name", ["exact_match", "multilabel_f1", "rouge", "chrf"])
@pytest.mark.parametrize("script", TEXTS)
def test_a_text_against_itself_and_against_another(name: str, script: str) -> None:
    text = TEXTS[script][0]
    used = set(unicodedata.normalize("NFKD", text).casefold())
    unlike = "".join(
        letter for letter in unicodedata.normalize("NFKD", TEXTS[script][1]) if letter.casefold() not in used
    )
    assert unlike.strip()
    assert value(name, text, text) == 100.0
    assert value(name, unicodedata.normalize("NFD", text), text) == 100.0  # as some tokenizers write it
    assert value(name, unlike, text) == value(name, text, unlike) == 0.0


def test_a_common_number_is_not_a_full_match() -> None:
    right, wrong = "公司在2023年盈利三百万元", "天气预报说2023年会更热"
    # 10 and 11 tokens, of which 2023 and 年 are common; it was 100 when only the number was kept.
    assert value("rouge", wrong, right) == pytest.approx(100 * 4 / 21)
    assert value("rouge", "2023", right) == pytest.approx(100 * 2 / (1 + 11))


@pytest.mark.parametrize(
    ("completion", "reference", "expected"),
    [
        ("今天天气好", "今天天气很好", 10 / 11),  # 5 of 5 and 5 of 6 characters
        ("好天气今天", "今天天气好", 2 * 2 / 10),  # order counts
        ("भारत एक देश", "भारत एक बड़ा देश", 6 / 7),
        ("देशी", "देश", 0),  # another word: no boundary before a vowel sign
        ("Дом стоит", "дом стоял", 1 / 2),
        ("مدرسة جَديدة", "مدرسة جديدة", 1),
        ("GPT很强", "gpt 很强", 1),
        ("สวัสดี", "สวัสดี ครับ", 8 / 11),
        ("naïve idea", "naive idea", 1 / 2),
    ],
)
def test_rouge_l_by_hand_in_other_scripts(completion: str, reference: str, expected: float) -> None:
    assert value("rouge", completion, reference) == pytest.approx(100 * expected)


LETTERS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cn", "Co", "Zs", "Zl", "Zp"]), min_size=1
)


@given(LETTERS)
@settings(max_examples=300, deadline=None)
def test_identical_texts_have_the_full_score(text: str) -> None:
    for name in ("exact_match", "exact_match as written", "rouge", "chrf"):
        assert value(name, text, text) == pytest.approx(100.0)


@given(LETTERS, LETTERS)
@settings(max_examples=300, deadline=None)
def test_texts_without_a_common_character_score_0_and_scores_are_symmetric(left: str, right: str) -> None:
    sides = [
        set(unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())) for text in (left, right)
    ]
    for name in ("exact_match", "rouge"):
        assert value(name, left, right) == pytest.approx(value(name, right, left))
    if not sides[0] & sides[1]:
        assert [value(name, left, right) for name in ("exact_match", "exact_match as written", "rouge", "chrf")] == [
            0.0
        ] * 4


def test_chrf_ignores_zero_width_spaces() -> None:
    assert value("chrf", "ភាសា\u200bខ្មែរ", "ភាសាខ្មែរ") == 100.0


@pytest.mark.parametrize(
    ("completion", "reference", "expected"),
    [
        ("b, a", "a,b", 100),
        ("A；B", "a,b", 0),
        ("a", "a, b", 100 * 2 / 3),
        ("a, b, c, d", "a, b", 100 * 4 / 6),
        ("a, a", "a", 100),
        ("c", "a, b", 0),
        ("", "a", 0),
        ("“A”, b.", "b, a", 100),
        ("电影，音乐", "音乐、电影", 100),
        ("سينما، موسيقى", "موسيقى, سينما", 100),
    ],
)
def test_label_sets(completion: str, reference: str, expected: float) -> None:
    assert value("multilabel_f1", completion, reference) == pytest.approx(expected)


@given(st.sets(st.sampled_from("abcdef"), min_size=1), st.sets(st.sampled_from("abcdef"), min_size=1))
def test_label_sets_by_precision_and_recall(given_set: set[str], right: set[str]) -> None:
    precision, recall = len(given_set & right) / len(given_set), len(given_set & right) / len(right)
    expected = 200 * precision * recall / (precision + recall) if precision else 0
    assert value("multilabel_f1", ", ".join(given_set), ", ".join(right)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("completion", "reference", "right"),
    [
        ("polish", "Polish", False),
        (" Polish\n", "Polish", True),
        ("Polish.", "Polish", False),
        ("cafe\u0301", "café", True),
        ("１", "1", False),
    ],
)
def test_labels_as_written(completion: str, reference: str, right: bool) -> None:
    metric = metric_from_key(metric_key("exact_match", False))
    assert metric.score(line(completion, reference)).value == (100.0 if right else 0.0)
    assert (metric.name, metric.title) == ("exact_match", "exact match, as written")


def test_normalize_changes_no_other_metric() -> None:
    assert [metric_key("exact_match", normalize) for normalize in (None, True)] == ["exact_match", "exact_match"]
    assert [metric_key(name, False) for name in ("rouge", "module:function")] == ["rouge", "module:function"]
    with pytest.raises(ConfigError, match="unknown metric 'rouge as written'"):
        metric_from_key("rouge as written")


ADD = "```python\ndef add(a, b):\n    return a + b\n```"
TESTS = ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]


@pytest.mark.usefixtures("compiled_sandbox")
def test_unit_tests() -> None:
    score = metric_from_key("unit_tests").score
    assert score(line(ADD, tests=TESTS)) == Score(100.0)
    assert score(line(ADD, tests="\n".join(TESTS))) == Score(100.0)
    assert score(line(ADD, tests=json.dumps(TESTS))) == Score(100.0)
    check = "def check(candidate):\n    assert candidate(1, 2) == 3"
    assert score(line(ADD, tests=check, entry_point="add")) == Score(100.0)
    assert score(line(ADD, tests=[*TESTS, "assert add(1, 1) == 1"])) == Score(
        0.0, "2 of 3 tests pass; assert add(1, 1) == 1: got 2"
    )
    assert score(line("I cannot.", tests=TESTS)).value == 0.0


@pytest.mark.usefixtures("compiled_sandbox")
def test_code_that_the_sandbox_does_not_support_is_not_scored() -> None:
    code = "import threading\ndef f(): threading.Thread(target=print).start()"
    score = metric_from_key("unit_tests").score(line(code, tests=["assert f() is None"]))
    assert score == Score(
        None, "not supported by the sandbox: assert f() is None: RuntimeError: can't start new thread"
    )


@pytest.mark.parametrize(
    "tests", [None, [], "", "# none", [1], {"a": 1}, 3, "add(1, 2) == 3", "def check(c):\n    assert c(1, 2) == 3"]
)
def test_rows_without_tests(tests: Any) -> None:
    fields = {} if tests is None else {"tests": tests}
    with pytest.raises(DataError, match=r"task 'chores', row 7: .*(tests|def check)"):
        value("unit_tests", ADD, **fields)


def test_nll_is_the_loss_of_the_reference() -> None:
    assert value("nll", loss=1.25) == 1.25
    assert value("nll", loss=2) == 2.0
    metric = metric_from_key("nll")
    assert (metric.higher_is_better, metric.unit, metric.binary) == (False, "nats/token", False)


@pytest.mark.parametrize("loss", [math.nan, math.inf, None, "1.2", True])
def test_loss_that_is_not_a_number(loss: Any) -> None:
    with pytest.raises(DataError, match="task 'chores', row 7: reference_nll"):
        value("nll", loss=loss)


def test_units_of_the_metrics() -> None:
    assert set(METRICS) == {"exact_match", "multilabel_f1", "rouge", "chrf", "unit_tests", "nll"}
    assert {name for name, metric in METRICS.items() if metric.binary} == {"exact_match", "unit_tests"}
    assert {metric.unit for metric in METRICS.values()} == {"%", "points", "nats/token"}
    assert all(metric.name == name and metric.title for name, metric in METRICS.items())


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("rogue", "did you mean rouge?"),
        ("unit_test", "did you mean unit_tests?"),
        ("bleurt", "write one of chrf"),
    ],
)
def test_unknown_metric(name: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown metric '{name}'; {advice.replace('?', '.')}"):
        metric_from_key(name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with custom metrics."""
    (tmp_path / "own_metrics.py").write_text(
        "def words(completion, reference, row): return len(completion.split()) * row.get('factor', 1)\n"
        "def right(completion, reference, row): return completion == reference\n"
        "def broken(completion, reference, row): return row['missing']\n"
        "def given(completion, reference, row): return row['value']\n"
        "CONSTANT = 3\n"
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner.py").write_text("def f(completion, reference, row): return 1\n")
    (tmp_path / "broken_module.py").write_text("import no_such_package\n")
    (tmp_path / "no_python.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    for name in ("own_metrics", "folder", "folder.inner", "broken_module", "no_python"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.usefixtures("project")
def test_custom_metric() -> None:
    path = list(sys.path)
    metric = metric_from_key("own_metrics:words")
    assert (metric.name, metric.title, metric.unit) == ("own_metrics:words", "words", "points")
    assert (metric.binary, metric.higher_is_better) == (False, True)
    score = metric.score(line("three words here", factor=2)).value
    assert (score, type(score)) == (6.0, float)
    assert value("own_metrics:right", "a", "a") == 100.0
    assert value("own_metrics:right", "a", "b") == 0.0
    assert value("folder.inner:f") == 1.0
    assert sys.path == path


@pytest.mark.usefixtures("project")
def test_custom_metric_may_return_numpy_numbers() -> None:
    import numpy as np

    assert value("own_metrics:given", value=np.float32(0.5)) == 0.5
    assert value("own_metrics:given", value=np.int64(3)) == 3.0


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "no_such_module:f",
            r"there is no no_such_module\.py in the working directory; metrics are only imported",
        ),
        ("folder.no_such:f", r"there is no folder/no_such\.py"),
        ("os:system", r"there is no os\.py"),
        ("broken_module:f", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("no_python:f", "SyntaxError"),
        ("own_metrics:wrds", r"has no function 'wrds'; did you mean words\?"),
        ("own_metrics:CONSTANT", "has no function 'CONSTANT'"),
        ("own_metrics:", "has no function ''"),
        (":f", "names no module"),
    ],
)
def test_missing_custom_metric(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"metric {name}: .*{problem}"):
        metric_from_key(name)
    assert str(Path.cwd()) not in sys.path


@pytest.mark.usefixtures("project")
def test_custom_metric_that_raises() -> None:
    with pytest.raises(DataError, match="task 'chores', row 7: metric own_metrics:broken raised KeyError: 'missing'"):
        value("own_metrics:broken")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("given", [None, "3", math.nan, math.inf, [1.0], 1j, "x" * 999])
def test_custom_metric_that_returns_no_number(given: Any) -> None:
    with pytest.raises(AlfineError, match="row 7: metric own_metrics:given returned .*, not a finite number") as error:
        value("own_metrics:given", value=given)
    assert len(str(error.value)) < 200


WORD_COUNT = """
from pipelines.scoring.metric import Metric, Score, Unit, register

register(Metric("word_count", "words", Unit.POINTS, score=lambda line: Score(float(len(line["completion"].split())))))
"""


def test_a_metric_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.scoring import metrics

    (tmp_path / "word_count.py").write_text(WORD_COUNT)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS.items()))
    monkeypatch.setattr(METRICS, "_is_loaded", False)
    job = {
        "pipeline": {"tasks": {"t": {"data": "r.jsonl", "prompt": "{q}", "completion": "{a}", "metric": "word_count"}}},
        "base_model": "./base",
        "trainer": {"epochs": 1},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    task = load_job(tmp_path / "job.yaml").pipeline.tasks["t"]
    assert value(task.metric, "one two three") == 3.0
    with pytest.raises(ConfigError, match="did you mean word_count"):
        metric_from_key("word_cont")


@pytest.mark.parametrize(("old", "new"), [("label", "exact_match"), ("perplexity", "nll")])
def test_a_renamed_metric_names_its_new_name(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown metric '{old}'; it was renamed: write {new}"):
        metric_from_key(old)


def test_only_a_metric_with_a_row_check_refuses_a_row_and_custom_metrics_are_not_imported() -> None:
    with pytest.raises(DataError, match="tests"):
        check_row("unit_tests", {"text": "x"})
    check_row("unit_tests", {"tests": "assert f(1) == 2"})
    check_row("rouge", {"text": "x"})
    check_row("no_such_module:metric", {"text": "x"})
