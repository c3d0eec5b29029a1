"""Blind rating in a real browser: by mouse and keyboard, saved in the browser, exported as JSON."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.report import analyse
from tests.report.run_folder import make_run, write_lines, write_page


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A page of ten rows, whose completions show which model generated them."""
    return write_page(
        tmp_path_factory.mktemp("page"), analyse(make_run(tmp_path_factory.mktemp("runs") / "small", rows=10))
    )


def saved(page):
    with page.expect_download() as download:
        page.click("#rate-save")
    assert download.value.suggested_filename.endswith("-ratings.json")
    return json.loads(Path(download.value.path()).read_text())


def side_of_tuned(page):
    """The side of the tuned model on the page `small`, where the base generates whole sentences."""
    left = page.inner_text("#rate-left")
    return "right" if left.startswith("The review is") or left == "base" else "left"


def test_rating_by_keys_and_buttons_with_undo_and_export(small, opened):
    with opened(small) as page:
        page.fill("[name=rater]", "Ada")
        page.click("#rate-start")
        sides = []
        for number in range(8):
            sides.append(side_of_tuned(page))
            if number % 2:
                page.click(f"[data-choice={sides[-1]}]")
            else:
                page.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight"}[sides[-1]])
        assert set(sides) == {"left", "right"}, "the sides are shuffled"
        page.keyboard.press("t")
        page.click("#rate-undo")
        page.keyboard.press("u")
        assert page.inner_text("#rate-progress") == "8 of 11" and side_of_tuned(page) == sides[7]
        page.keyboard.press("b")
        page.reload()
        assert page.inner_text("#rate-count") == "8 of 11 rated." and page.input_value("[name=rater]") == "Ada"
        page.click("#rate-start")
        for choice in ("tie", "both bad", "tie"):
            page.click(f"[data-choice='{choice}']")
        assert page.locator("#rate-revealed tr").last.inner_text().split() == ["all", "0", "7", "2", "2"]
        assert page.inner_text("#rate-count") == "11 of 11 rated." and not page.is_visible("#rate-start")
        report = saved(page)
        assert {key: report[key] for key in ("format_version", "run", "models", "rater")} == {
            "format_version": 3,
            "run": "small",
            "models": ["base", "tuned"],
            "rater": "Ada",
        }
        assert report["report"] == page.get_attribute("body", "data-report") and re.fullmatch(
            "[0-9a-f]{64}", report["report"]
        )
        choices = [rating["choice"] for rating in report["ratings"]]
        assert choices == ["tuned"] * 7 + ["both bad", "tie", "both bad", "tie"]
        rows = {rating["row"] for rating in report["ratings"] if rating["task"] == "mood"}
        assert rows == set(range(10))
        assert [rating["prompt_index"] for rating in report["ratings"] if rating["task"] is None] == [0]
        page.once("dialog", lambda dialog: dialog.accept())
        page.click("#rate-discard")
        assert page.inner_text("#rate-count") == "11 pairs of answers." and not page.is_visible("#rate-save")


def test_nothing_on_the_screen_names_the_models(tmp_path, opened):
    analysis = replace(analyse(make_run(tmp_path / "r", rows=4)), models=("alpha-run", "omega-run"))
    with opened(write_page(tmp_path, analysis)) as page:
        assert "alpha-run" in page.inner_text("body")
        page.click("#rate-start")
        for _ in range(4):
            assert not re.search(
                "alpha-run|omega-run|better on|right|wrong", page.inner_text("body").replace("Right", "")
            )
            assert not re.search(
                "alpha|omega|base|tuned",
                page.locator("#rate-item").evaluate(
                    "item => [item, ...item.querySelectorAll('*')].map(one => [...one.attributes].map(a => a.value)).join()"
                ),
            )
            assert not page.is_visible("#rate-reference .text")
            page.keyboard.press("t")
        page.keyboard.press("Escape")
        assert page.is_visible("#examples") and page.evaluate("document.activeElement.id") == "rate-start"
        page.click("#rate-result")
        assert "omega-run" in page.inner_text("#rate-revealed")


def test_ratings_of_other_completions_are_not_loaded(tmp_path, opened):
    run = make_run(tmp_path / "r", rows=4)
    page_file = write_page(tmp_path, analyse(run))
    with opened(page_file) as page:
        page.click("#rate-start")
        page.keyboard.press("t")
        write_lines(
            run / "tuned" / "sample_prompts.jsonl", [{"title": "free", "prompt": "say", "completion": "changed"}]
        )
        write_page(tmp_path, analyse(run))
        page.reload()
        assert page.inner_text("#rate-count") == "5 pairs of answers."
        page.click("#rate-start")
        page.keyboard.press("t")
        write_lines(run / "tuned" / "sample_prompts.jsonl", [{"title": "free", "prompt": "say", "completion": "tuned"}])
        write_page(tmp_path, analyse(run))
        page.reload()
        assert page.inner_text("#rate-count") == "1 of 5 rated.", "those of the first answers are still there"


def test_rating_without_storage_shows_a_warning_and_works(small, opened):
    broken = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied'); }});"
    with opened(small, script=broken) as page:
        assert page.is_visible("#rate-memory")
        page.click("#rate-start")
        page.keyboard.press("t")
        page.keyboard.press("Escape")
        assert [rating["choice"] for rating in saved(page)["ratings"]] == ["tie"]
    with opened(small) as page:
        assert not page.is_visible("#rate-memory")
