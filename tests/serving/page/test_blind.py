"""Blind mode in a real browser: hidden names, random sides, votes in the run's folder, what the report makes of them."""

import re

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.report.votes import read_votes
from tests.serving.page.test_page import send, texts
from tests.serving.page_server import answering, chunk, demo_page_run, one_row_run, until, wait_for_answers

KEYS = {"left": "ArrowLeft", "right": "ArrowRight"}
VOTABLE = "!document.getElementById('votes').hidden"
ATTRIBUTES = "item => [item, ...item.querySelectorAll('*')].map(one => [...one.attributes].map(a => a.value)).join()"


@pytest.fixture
def folder(tmp_path):
    return demo_page_run(tmp_path / "demo", rows=12)


def side_of_tuned(page):
    return "left" if texts(page)[0] == "short answer" else "right"


def test_votes_on_prompts_of_the_rater(folder, served):
    sides, script = [], answering("a long answer", "short answer")
    with served(folder, script) as (page, server):
        page.click("#blind")
        page.fill("#rater", " Ada ")
        page.select_option("#task", label="Free prompt")
        for number in range(12):
            send(page, f"prompt {number}")
            until(page, VOTABLE)
            sides.append(side_of_tuned(page))
            if number % 2:
                page.click(f"[data-choice={sides[-1]}]")
            else:
                page.keyboard.press(KEYS[sides[-1]])
            until(page, "!document.getElementById('next').hidden")
            assert page.get_attribute(f"[data-choice={sides[-1]}]", "aria-pressed") == "true"
            page.keyboard.press("n")
            assert page.locator(".pair").count() == 0
    assert set(sides) == {"left", "right"}, "the sides are random"
    votes = read_votes(folder / "votes.jsonl")
    assert [vote.choice for vote in votes] == ["tuned"] * 12
    assert [vote.left for vote in votes] == [{"left": "tuned", "right": "base"}[side] for side in sides]
    assert (votes[3].rater, votes[3].turns[0].prompt, votes[3].turns[0].base) == ("Ada", "prompt 3", "a long answer")
    assert votes[3].system == "Answer briefly."
    assert votes[3].settings.model_dump() == {"temperature": 0.0, "max_tokens": 96, "seed": None}
    result = CliRunner().invoke(main, ["report", str(folder), "--ratings", str(folder / "votes.jsonl")])
    assert "On prompts of their own, 1 rater prefer tuned." in result.output


def test_test_rows_with_the_answers_of_the_report(folder, served):
    with served(folder, answering()) as (page, server):
        page.click("#blind")
        page.fill("#rater", "Ben")
        page.click("#rate-rows")
        until(page, VOTABLE)
        shown, total = [], int(re.search(r"of (\d+) test rows", page.inner_text("#rated"))[1])
        for number in range(total):
            assert page.inner_text("#rated") == f"{number} of {total} test rows rated"
            shown.append(page.inner_text(".pair h3"))
            assert not page.is_visible("#compose"), "there is nothing to write"
            page.keyboard.press("ArrowRight" if number % 2 else "t")
            until(page, f"!document.getElementById('rated').textContent.startsWith('{number} ')")
        assert len(set(shown)) == total and page.locator(".pair").count() == 0
        assert server.requests == [], "nothing is generated"
    votes = read_votes(folder / "votes.jsonl")
    assert [f"{vote.task}, row {vote.row}" for vote in votes] == shown
    assert all(vote.choice in {"base", "tuned"} - {vote.left} for vote in votes[1::2])
    assert {vote.choice for vote in votes[::2]} == {"tie"}
    result = CliRunner().invoke(main, ["report", str(folder), "--ratings", str(folder / "votes.jsonl")])
    assert f"{total} items: " in " ".join(result.output.split()) and "not counted" not in result.output


def test_nothing_on_the_page_names_the_models(folder, served):
    async def script(body, request):
        yield chunk(reasoning_content="Hm.")
        yield chunk(f"{'xy' if body['model'] == 'base' else 'yx'}", finish_reason="stop")

    with served(folder, script) as (page, server):
        page.click("#blind")
        for start in ("prompt", "row"):
            if start == "prompt":
                page.select_option("#task", label="Free prompt")
                send(page, "x")
            else:
                page.click("#rate-rows")
            until(page, VOTABLE)
            pair = page.locator(".pair")
            assert not re.search("(?i)base|tuned|token|[0-9] s", pair.inner_text())
            assert not re.search(
                "(?i)base|tuned", pair.evaluate(ATTRIBUTES) + page.locator("#votes").evaluate(ATTRIBUTES)
            )
            page.hover(".completions > div > .text >> nth=0")
            assert not page.is_visible("#token")
            assert page.is_disabled("#probabilities") and page.is_disabled("#show-history")
            page.keyboard.press("t")
            until(page, "document.getElementById('status').textContent.includes('saved')")
        page.click("#blind")
        assert not re.search("Left|Right", page.inner_text("#conversation"))


def test_a_vote_can_be_changed_and_counts_once(folder, served):
    with served(folder, answering("a long answer", "short answer")) as (page, server):
        page.click("#blind")
        page.select_option("#task", label="Free prompt")
        send(page, "x")
        for key in ("t", "b", "ArrowLeft"):
            until(page, VOTABLE)
            page.keyboard.press(key)
            page.wait_for_timeout(100)
        until(page, "document.querySelector('[data-choice=left]').ariaPressed === 'true'")
        assert len((folder / "votes.jsonl").read_text().splitlines()) == 3
        (vote,) = read_votes(folder / "votes.jsonl")
        assert vote.choice == vote.left
        page.click("#rate-rows")
        until(page, "document.querySelector('.pair h3').textContent.includes('row')")
        first = page.inner_text(".pair h3")
        page.keyboard.press("t")
        until(page, f"document.querySelector('.pair h3').textContent !== '{first}'")
        page.keyboard.press("u")
        until(page, f"document.querySelector('.pair h3').textContent === '{first}'")
        assert page.get_attribute("[data-choice=tie]", "aria-pressed") == "true"
        page.keyboard.press("b")
        until(page, f"document.querySelector('.pair h3').textContent !== '{first}'")
        assert [vote.choice for vote in read_votes(folder / "votes.jsonl")] == [vote.choice, "both bad"]


def test_keys_do_not_vote_while_typing_or_streaming(folder, served):
    with served(folder, answering("a b c d e f g h", "x", delay=0.05)) as (page, server):
        page.click("#blind")
        page.select_option("#task", label="Free prompt")
        send(page, "x")
        page.keyboard.press("t")
        assert not page.is_visible("#votes")
        until(page, VOTABLE)
        assert page.evaluate("document.activeElement.className") == "pair"
        page.focus("#columns textarea")
        page.keyboard.type("tbnu")
        page.keyboard.press("ArrowLeft")
        assert page.input_value("#columns textarea") == "tbnu" and not (folder / "votes.jsonl").exists()


def test_several_turns_are_one_vote(folder, served):
    with served(folder, answering("long", "short")) as (page, server):
        page.click("#blind")
        page.select_option("#task", label="Free prompt")
        send(page, "one")
        wait_for_answers(page)
        send(page, "two")
        wait_for_answers(page, 2)
        until(page, VOTABLE)
        page.keyboard.press("b")
        until(page, "!document.getElementById('next').hidden")
    (vote,) = read_votes(folder / "votes.jsonl")
    assert [turn.prompt for turn in vote.turns] == ["one", "two"]


def test_a_test_row_without_a_vote_stays_unknown(folder, served):
    """Its names are not shown when blind mode ends, since it comes again."""
    with served(folder, answering()) as (page, server):
        page.click("#blind")
        page.click("#rate-rows")
        until(page, VOTABLE)
        first = page.inner_text(".pair h3")
        page.click("#blind")
        assert page.locator(".pair").count() == 0 and page.is_visible("#compose")
        page.click("#blind")
        page.click("#rate-rows")
        until(page, VOTABLE)
        assert page.inner_text(".pair h3") == first


def test_a_vote_that_is_not_saved_can_be_repeated(folder, served):
    with served(folder, answering(), expected="500") as (page, server):
        page.click("#blind")
        page.click("#rate-rows")
        until(page, VOTABLE)
        (folder / "votes.jsonl").mkdir()
        page.keyboard.press("t")
        until(page, "document.getElementById('vote-line').textContent.startsWith('Not saved')")
        assert page.inner_text("#vote-line") == "Not saved: The vote was not saved: Is a directory. Vote again."
        (folder / "votes.jsonl").rmdir()
        page.keyboard.press("t")
        until(page, "document.getElementById('rated').textContent.startsWith('1 of')")


def test_equal_answers_are_named_and_a_run_without_rows_says_so(tmp_path, served):
    folder = one_row_run(tmp_path / "r", "t", {"q": "x", "a": "y"}, {"prompt": "{q}", "completion": "{a}"})
    (folder / "base" / "completions.jsonl").unlink()
    with served(folder, answering("same", "same")) as (page, server):
        page.click("#blind")
        page.click("#rate-rows")
        until(page, "document.getElementById('rated').textContent")
        assert page.inner_text("#rated") == "This run has no test rows"
        send(page, "x")
        until(page, VOTABLE)
        assert page.inner_text("#vote-line") == "Both answers are the same. Which is better?"


def test_the_history_has_the_voted_conversation_with_names(folder, served):
    with served(folder, answering("a long answer", "short answer")) as (page, server):
        page.click("#blind")
        page.select_option("#task", label="Free prompt")
        send(page, "x")
        until(page, VOTABLE)
        page.keyboard.press("t")
        until(page, "!document.getElementById('next').hidden")
        page.click("#blind")
        assert {text.split()[0] for text in page.locator(".completions h4").all_inner_texts()} == {"Base", "Tuned"}
        page.reload()
        page.wait_for_selector("body.ready")
        page.click("#show-history")
        page.click(".history .open")
        assert {text.split()[0] for text in page.locator(".completions h4").all_inner_texts()} == {"Base", "Tuned"}
        assert texts(page)[["base", "tuned"].index("tuned") if side_of_tuned(page) == "right" else 0] == "short answer"
