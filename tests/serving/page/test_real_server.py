"""The page on the server of `alfine serve`, with a tiny model: no part is replaced."""

import pytest

from pipelines.report.votes import read_votes
from tests.inference.tiny_run import load_models, make_run
from tests.report.run_folder import line, write_lines
from tests.serving.api import running_server
from tests.serving.page.test_page import send, texts
from tests.serving.page_server import until, wait_for_answers


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("tiny"))
    for model in ("base", "tuned"):
        rows = [
            line("odd", n, f"is {n} odd?", "yes", f"{model} {n}", fields={"q": f"is {n} odd", "a": "yes"})
            for n in range(1, 4)
        ]
        write_lines(run.path(model, "completions.jsonl"), rows)
    return load_models(run)


def test_rows_turns_probabilities_and_votes(models, visit):
    with running_server(models) as address, visit(address) as page:
        page.wait_for_selector("body.ready")
        page.fill("#row", "2")
        page.click("#fill")
        until(page, "document.querySelector('#columns textarea').value === 'is 2 odd'")
        page.click("#send")
        wait_for_answers(page)
        first = texts(page)
        assert page.locator(".completions .line").all_inner_texts() == ["", ""]
        shown = page.locator(".base > .text .token").all_inner_texts()
        assert "".join(shown) == page.inner_text(".base > .text") and len(shown) > 1
        page.focus(".base > .text")
        page.keyboard.press("ArrowRight")
        assert "%" in page.inner_text("#token")
        levels = page.locator(".token[data-level]").count()
        assert levels == page.locator(".token").count(), "every token has its probability"
        send(page, "and 5?")
        wait_for_answers(page, 2)
        assert page.locator(".completions .line").all_inner_texts() == [""] * 4
        page.click("#new")
        page.fill("#columns textarea", "is 2 odd")
        page.click("#send")
        wait_for_answers(page)
        assert texts(page) == first, "greedy answers are repeated"
        page.click("#blind")
        page.click("#rate-rows")
        until(page, "!document.getElementById('votes').hidden")
        page.keyboard.press("ArrowLeft")
        until(page, "document.getElementById('rated').textContent === '1 of 3 test rows rated'")
        page.click("#new")
        page.select_option("#task", label="Free prompt")
        page.click("#setup summary")
        page.fill("#temperature", "1")
        page.fill("#seed", "3")
        send(page, "the tea")
        until(
            page,
            "document.querySelector('.pair h3').textContent === 'Prompt' && !document.getElementById('votes').hidden",
        )
        page.keyboard.press("b")
        until(page, "!document.getElementById('next').hidden")
    rated, own = read_votes(models.run.path("votes.jsonl"))
    assert (rated.task, rated.choice) == ("odd", rated.left)
    assert (own.choice, own.settings.seed, own.turns[0].prompt) == ("both bad", 3, "the tea")


def test_an_api_key_and_a_prompt_that_is_too_long(models, visit):
    with running_server(models, api_key="secret") as address, visit(address, expected="40[01]") as page:
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("body.ready")
        send(page, "x" * 600)
        until(page, "document.querySelectorAll('.completions > div > button:not([hidden])').length === 2")
        assert page.inner_text(".base .line").startswith("The context is 512 tokens; the prompt has")


def test_a_queue_that_is_full_is_tried_again(models, visit):
    with running_server(models, max_concurrency=1, max_waiting=0) as address, visit(address, expected="429") as page:
        page.wait_for_selector("body.ready")
        page.select_option("#task", label="say")
        page.click("#setup summary")
        page.fill("#max-tokens", "300")
        send(page, "the tea")
        until(page, "[...document.querySelectorAll('.completions .line')].some(one => one.textContent)")
        assert "The server is busy: " in page.text_content(".completions")
        wait_for_answers(page)
        assert page.locator(".completions .line").all_inner_texts() == ["", ""]
