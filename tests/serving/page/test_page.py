"""The page in a real browser, on scripted completions: forms, prompts, streams, settings, stop."""

import asyncio

import pytest

from tests.serving.page_server import (
    answering,
    chunk,
    one_row_run,
    until,
    wait_for_answers,
)

ANSWERS = ".completions > div"
BEGUN = f"[...document.querySelectorAll('{ANSWERS} > .text')].filter(one => one.innerText).length === 2"
LONG = "This review is positive, but it's also somewhat negative. The food took ages, came cold, and cost a fortune."


def send(page, text, field="#columns textarea >> nth=0"):
    page.fill(field, text)
    page.keyboard.press("Control+Enter")


def texts(page):
    return page.locator(f"{ANSWERS} > .text").all_inner_texts()


def test_a_task_is_a_form_and_is_sent_as_a_row(demo_run_folder, served):
    with served(demo_run_folder, answering()) as (page, server):
        options = page.locator("#task option").all_inner_texts()
        assert options == ["Free prompt", "sentiment", "summaries", "code"]
        page.select_option("#task", label="sentiment")
        assert page.locator("#columns label").all_inner_texts() == ["review"]
        send(page, "I liked it.")
        wait_for_answers(page)
        assert texts(page) == ["The review is positive.", "positive"]
        assert page.locator(f"{ANSWERS} > h4").all_inner_texts()[0].startswith("Base 4 tokens · ")
        assert page.inner_text(".pair .prompt") == "Is this review positive or negative?\nI liked it."
        assert sorted(server.requests, key=lambda body: body["model"]) == [
            {
                "model": model,
                "task": "sentiment",
                "row": {"review": "I liked it."},
                "temperature": 0,
                "max_tokens": 32,
                "logprobs": True,
                "top_logprobs": 5,
                "stream": True,
            }
            for model in ("base", "tuned")
        ]


def test_code_has_a_type_of_its_own(demo_run_folder, served):
    with served(demo_run_folder, answering()) as (page, server):
        for task, family in (("code", "monospace"), ("sentiment", "sans-serif")):
            page.select_option("#task", label=task)
            send(page, "x")
            wait_for_answers(page)
            shown = page.evaluate("getComputedStyle(document.querySelector('.base > .text')).fontFamily")
            assert shown.endswith(family)
            page.click("#new")


def test_both_answers_stream_at_the_same_time(demo_run_folder, served):
    gate = asyncio.Event()

    async def script(body, request):
        yield chunk(f"first {body['model']}")
        await gate.wait()
        yield chunk(" last", finish_reason="stop")

    with served(demo_run_folder, script) as (page, server):
        send(page, "x")
        until(page, BEGUN)
        assert texts(page) == ["first base", "first tuned"]
        assert page.is_visible("#stop") and page.is_disabled("#send")
        assert page.locator("[aria-busy=true]").count() == 2
        gate._loop.call_soon_threadsafe(gate.set)
        wait_for_answers(page)
        assert texts(page) == ["first base last", "first tuned last"] and not page.is_visible("#stop")
        assert page.inner_text("#status") == "Both answers are complete."


def test_several_turns_give_each_model_its_own_answers(demo_run_folder, served):
    with served(demo_run_folder, answering("long", "short")) as (page, server):
        page.select_option("#task", label="Free prompt")
        send(page, "one")
        wait_for_answers(page)
        send(page, "two")
        wait_for_answers(page, 2)
        bodies = {body["model"]: body for body in server.requests[2:]}
        for model, answer in (("base", "long"), ("tuned", "short")):
            assert bodies[model]["messages"] == [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": answer},
                {"role": "user", "content": "two"},
            ]
        assert page.locator(".pair .prompt").all_inner_texts() == ["one", "two"]
        page.click("#new")
        assert page.locator(".pair").count() == 0 and page.is_visible("#task")


def test_a_task_goes_on_as_messages_after_its_row(demo_run_folder, served):
    with served(demo_run_folder, answering("no", "yes")) as (page, server):
        send(page, "Fine.")
        wait_for_answers(page)
        send(page, "Sure?")
        wait_for_answers(page, 2)
        body = next(body for body in server.requests[2:] if body["model"] == "tuned")
        assert body["task"] == "sentiment" and "row" not in body
        assert [turn["content"] for turn in body["messages"]] == [
            "Answer briefly.",
            "Is this review positive or negative?\nFine.",
            "yes",
            "Sure?",
        ]


def test_settings_and_system_prompt(demo_run_folder, served):
    with served(demo_run_folder, answering()) as (page, server):
        page.click("#setup summary")
        assert page.inner_text("#template") == "Is this review positive or negative?\n{review}"
        page.fill("#system", "Be rude.")
        page.fill("#temperature", "0.7")
        page.fill("#max-tokens", "5")
        page.fill("#seed", "11")
        send(page, "Fine.")
        wait_for_answers(page)
        body = server.requests[0]
        assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.7, 5, 11)
        assert body["messages"][0] == {"role": "system", "content": "Be rude."} and body["task"] == "sentiment"
        assert body["messages"][1]["content"].endswith("\nFine.")
        page.click("#new")
        page.click("#defaults")
        assert [page.input_value(f"#{name}") for name in ("system", "temperature", "max-tokens", "seed")] == [
            "Answer briefly.",
            "0",
            "32",
            "",
        ]
        for field, value in (("#temperature", "3"), ("#max-tokens", "0"), ("#max-tokens", "1.5"), ("#seed", "-1")):
            page.click("#defaults")
            page.fill(field, value)
            send(page, "Fine.")
            assert page.is_visible("#composer-error") and page.evaluate("document.activeElement.id") == field[1:]
        assert len(server.requests) == 2
        page.select_option("#task", label="code")
        assert page.input_value("#max-tokens") == "96"


def test_test_rows_and_sample_prompts_fill_the_form(demo_run_folder, served):
    with served(demo_run_folder, answering()) as (page, server):
        page.fill("#row", "2")
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#columns textarea').value")
        assert page.inner_text("#row-count") == "of 36 (row 1 of the file)"
        page.click("#send")
        wait_for_answers(page)
        assert page.inner_text(".pair h3") == "sentiment, row 1"
        page.click(".reference summary")
        assert page.inner_text(".reference .text") in ("positive", "negative")
        page.click("#new")
        page.click("#random")
        until(page, "document.querySelector('#columns textarea').value")
        page.fill("#columns textarea", "changed")
        page.click("#send")
        wait_for_answers(page)
        assert page.inner_text(".pair h3") == "sentiment" and page.locator(".reference").count() == 0
        page.click("#new")
        for number in ("0", "37", "1.5", ""):
            page.fill("#row", number)
            page.click("#fill")
            assert page.inner_text("#composer-error") == "Write a number from 1 to 36."
        page.select_option("#task", label="Free prompt")
        page.fill("#row", "1")
        page.click("#fill")
        until(page, "document.querySelector('#columns textarea').value")
        page.fill("#columns textarea", "  ")
        page.click("#send")
        assert page.inner_text("#composer-error") == "Write a prompt first."


def test_conversations_and_other_values_of_a_row(tmp_path, served):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    folder = one_row_run(
        tmp_path / "r", "chat", {"turns": turns, "who": 7}, {"messages": "turns", "system": "For {who}."}
    )
    with served(folder, answering()) as (page, server):
        assert page.locator("#columns label span:first-child").all_inner_texts()[0].startswith("Message, or")
        send(page, "Good day")
        wait_for_answers(page)
        assert server.requests[0]["row"] == {"turns": [{"role": "user", "content": "Good day"}]}
        page.click("#new")
        page.fill("#row", "1")
        page.click("#fill")
        until(page, "document.querySelectorAll('#columns textarea')[1].value === '7'")
        page.click("#send")
        wait_for_answers(page)
        assert server.requests[2]["row"] == {"turns": turns, "who": 7}, "values of the row keep their types"
        assert page.inner_text(".pair .prompt") == "Hi"


def test_the_row_is_checked_before_anything_is_sent(tmp_path, served):
    folder = one_row_run(tmp_path / "r", "chat", {"turns": []}, {"messages": "turns"})
    with served(folder, answering(), expected="400") as (page, server):
        send(page, '[{"role": "nobody", "content": "x"}]')
        page.wait_for_selector("#composer-error:visible")
        assert page.inner_text("#composer-error").startswith("Column turns, turn 1 has the role 'nobody'")
        assert page.locator(".pair").count() == 0 and "nobody" in page.input_value("#columns textarea")
        assert server.requests == []


@pytest.mark.parametrize("how", ["key", "button"])
def test_stop_keeps_what_there_is(demo_run_folder, served, how):
    gone = []

    async def script(body, request):
        try:
            yield chunk("half")
            await asyncio.sleep(60)
        finally:
            gone.append(body["model"])

    with served(demo_run_folder, script) as (page, server):
        send(page, "x")
        until(page, BEGUN)
        page.keyboard.press("Escape") if how == "key" else page.click("#stop")
        wait_for_answers(page)
        assert texts(page) == ["half", "half"] and "stopped" in page.inner_text(".base h4")
        page.wait_for_timeout(300)
        send(page, "go on")
        until(page, "document.querySelectorAll('.pair').length === 2")
        page.keyboard.press("Escape")
        wait_for_answers(page, 2)
    assert sorted(gone) == ["base", "base", "tuned", "tuned"], "the server sees that the client has gone"
