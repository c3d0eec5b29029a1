"""Errors of the server and the connection, API keys, and texts that try to be more than text."""

import re

import pytest

from tests.report.test_hostile import HOSTILE, SKELETON
from tests.serving.page.test_page import send, texts
from tests.serving.page_server import (
    COLUMN,
    CUT,
    ScriptedServer,
    answering,
    chunk,
    hostile_run,
    serving,
    until,
    wait_for_answers,
    words,
)


def lines(page):
    return [text for text in page.locator(".completions .line").all_inner_texts() if text]


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (429, "The server is busy: no free slot. Trying again in 3 s (1 of 4)."),
        (503, "The server is not ready: no free slot. Trying again in 3 s (1 of 4)."),
    ],
)
def test_a_busy_server_is_tried_again(demo_run_folder, served, status, line):
    with served(demo_run_folder, answering(), expected=str(status)) as (page, server):
        server.failures = [(status, "no free slot", {"Retry-After": "3"})] * 2
        send(page, "x")
        until(page, "[...document.querySelectorAll('.completions .line')].filter(one => one.textContent).length === 2")
        assert lines(page) == [line, line]
        wait_for_answers(page)
        assert texts(page) == ["The review is positive.", "positive"] and lines(page) == []


@pytest.mark.parametrize(
    ("status", "message", "line"),
    [
        (400, "the prompt has 9,000 tokens, the context 8,192", "The prompt has 9,000 tokens, the context 8,192."),
        (404, "unknown model\n'base'", "Unknown model 'base'."),
        (500, "", "HTTP status 500."),
    ],
)
def test_other_errors_are_one_line_with_a_button(demo_run_folder, served, status, message, line):
    with served(demo_run_folder, answering(), expected=str(status)) as (page, server):
        server.failures = [(status, message, {})] * 2
        send(page, "x")
        until(page, "document.querySelectorAll('.completions > div > button:not([hidden])').length === 2")
        assert lines(page) == [line, line] and not page.is_visible("#stop")
        page.click(".tuned > button")
        until(page, "document.querySelector('.tuned > .text').textContent === 'positive'")
        wait_for_answers(page)
        assert lines(page) == [line]
        page.click(".base > button")
        wait_for_answers(page)
        assert texts(page) == ["The review is positive.", "positive"]


def test_a_lost_connection_is_tried_again_from_the_start(demo_run_folder, served):
    cut = []

    async def script(body, request):
        yield chunk("The review ")
        if body["model"] not in cut:
            cut.append(body["model"])
            yield CUT
        yield chunk("is fine.", finish_reason="stop")

    with served(demo_run_folder, script, expected="ERR_") as (page, server):
        send(page, "x")
        until(page, "document.querySelector('.completions .line')?.textContent")
        assert lines(page)[0] == "The connection to the server is lost. Trying again in 1 s (1 of 4)."
        wait_for_answers(page)
        assert texts(page) == ["The review is fine."] * 2 and lines(page) == []
        assert server.requests[0] in server.requests[2:], "the same request"


def test_a_request_that_is_closed_before_its_answer(demo_run_folder, served):
    with served(demo_run_folder, answering(), expected="ERR_") as (page, server):
        server.failures = [(0, "", {})] * 4
        send(page, "x")
        wait_for_answers(page)
        assert texts(page) == ["The review is positive.", "positive"]


def test_escape_ends_the_waiting(demo_run_folder, served):
    with served(demo_run_folder, answering(), expected="503") as (page, server):
        server.failures = [(503, "loading", {"Retry-After": "30"})] * 2
        send(page, "x")
        until(page, "document.querySelector('.completions .line')?.textContent.includes('30 s')")
        page.keyboard.press("Escape")
        wait_for_answers(page)
        assert lines(page) == [] and texts(page) == ["(nothing)"] * 2


@pytest.mark.parametrize(
    ("events", "line"),
    [
        ([{"error": {"message": "out of memory"}}], "Out of memory."),
        ([{"error": {}}], "The server failed."),
    ],
)
def test_an_error_within_the_stream(demo_run_folder, served, events, line):
    async def script(body, request):
        yield chunk("half")
        for event in events:
            yield event

    with served(demo_run_folder, script) as (page, server):
        send(page, "x")
        until(page, "document.querySelectorAll('.completions > div > button:not([hidden])').length === 2")
        assert lines(page) == [line, line] and texts(page) == ["half", "half"]


def test_a_server_that_has_gone(demo_run_folder, visit):
    server = ScriptedServer(demo_run_folder, answering())
    with serving(server.app) as address:
        opened = visit(address, expected="ERR_|Failed to load")
        page = opened.__enter__()
        page.wait_for_selector("body.ready")
    send(page, "x")
    until(page, "document.getElementById('composer-error').textContent")
    assert page.inner_text("#composer-error") == "The connection to the server is lost."
    assert page.input_value("#columns textarea") == "x"
    opened.__exit__(None, None, None)


def test_the_page_waits_for_a_server_that_loads_its_model(demo_run_folder, visit):
    server = ScriptedServer(demo_run_folder, answering())
    server.unready = 2
    with serving(server.app) as address, visit(address, expected="503") as page:
        until(page, "document.getElementById('page-error').textContent")
        assert page.inner_text("#page-error").startswith("The server is not ready: loading. Trying again")
        page.wait_for_selector("body.ready")
        assert not page.is_visible("#page-error")


def test_an_api_key_is_asked_for_and_kept_for_the_tab(demo_run_folder, served):
    with served(demo_run_folder, answering(), key="secret", expected="401") as (page, server):
        page.wait_for_selector("#key-dialog[open]")
        assert not page.is_visible("#key-error")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-error:visible")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("body.ready")
        send(page, "x")
        wait_for_answers(page)
        assert texts(page) == ["The review is positive.", "positive"]
        page.reload()
        page.wait_for_selector("body.ready")
        assert page.evaluate("Object.values(localStorage).join().includes('secret')") is False
        page.evaluate("sessionStorage.clear()")
        page.reload()
        page.wait_for_selector("#key-dialog[open]")
        page.keyboard.press("Escape")
        until(page, "document.getElementById('page-error').textContent")
        assert page.inner_text("#page-error") == "This server asks for an API key."


@pytest.mark.parametrize("value", ["schlüssel", "a\nb", "😀"])
def test_a_key_that_no_header_can_have(demo_run_folder, served, value):
    with served(demo_run_folder, answering(), key="secret", expected="401") as (page, server):
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", value)
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-error:visible")
        assert page.evaluate("document.getElementById('key-dialog').open")


NEWLINES = "\n" * 100
"""A text area takes seconds for thousands of lines that are typed."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return hostile_run(
        tmp_path_factory.mktemp("runs") / "<img src=x onerror=window.ran=1>\u202e", [text[:20_000] for text in HOSTILE]
    )


@pytest.mark.parametrize("part", range(4))
def test_texts_stay_text(hostile, served, part):
    """Prompts, answers, thoughts, tokens, columns, names and titles."""
    dialogs = []

    async def script(body, request):
        text = HOSTILE[int(body["messages"][-1]["content"].split()[0])][:20_000]
        yield chunk(reasoning_content=text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
        for word in words(text)[:200]:
            yield chunk(word.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
        yield chunk(finish_reason="stop")

    with served(hostile, script, viewport={"width": 390, "height": 844}) as (page, server):
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        assert "<script>" in page.text_content("#template")
        assert page.locator("#columns label").all_inner_texts()[1] == COLUMN
        before = page.evaluate(SKELETON)
        page.select_option("#task", label="Free prompt")
        for number in range(part, 40, 4):
            text = HOSTILE[number].encode("utf-8", "ignore").decode()
            send(page, f"{number} {text[: 50 if text.startswith(NEWLINES) else 2000]}")
            wait_for_answers(page)
            if page.locator(".token").count():  # none where the answer is blank
                page.locator(".token >> nth=0").hover()
            page.click("#new")
        after = page.evaluate(SKELETON)
        for tag in ("script", "iframe", "img", "style", "link", "base", "object", "embed", "svg", "form"):
            assert after.get(tag, 0) == before.get(tag, 0), tag
        page.click("#show-history")
        assert page.evaluate("window.ran === undefined") and dialogs == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shown = page.evaluate("document.body.textContent")
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", shown)


def test_rows_and_names_stay_text(hostile, served):
    with served(hostile, answering(), viewport={"width": 390, "height": 844}) as (page, server):
        page.select_option("#task", index=1)
        for number in range(1, 41, 5):
            page.fill("#row", str(number))
            page.click("#fill")
            until(page, f"document.getElementById('row-count').textContent.includes('(row {number - 1} ')")
            page.click("#send")
            wait_for_answers(page)
            assert page.evaluate("window.ran === undefined && !document.querySelector('.pair script, .pair img')")
            page.click("#new")
        page.click("#blind")
        page.click("#rate-rows")
        for _ in range(5):
            until(page, "!document.getElementById('votes').hidden")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.keyboard.press("t")
            page.wait_for_timeout(150)


def test_the_policy_forbids_html_from_text(demo_run_folder, served):
    with served(demo_run_folder, answering(), expected="Trusted(HTML|Script)|Content Security Policy") as (
        page,
        server,
    ):
        assert (
            page.evaluate(
                "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'set'; } catch (error) { return error.name; } })()"
            )
            == "TypeError"
        )
        assert page.evaluate(
            "(() => { try { const one = document.createElement('img'); one.setAttribute('onerror', 'window.ran = 1'); "
            "one.src = 'data:,x'; document.body.append(one); return new Promise(go => setTimeout(() => go(window.ran), 200)); } catch (error) { return error.name; } })()"
        ) in (None, "TypeError")
