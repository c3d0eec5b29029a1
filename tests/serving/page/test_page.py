"""The page in a real browser, on scripted completions: prompts, streams, tokens, settings, history, looks."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.serving.page_server import (
    answering,
    chunk,
    demo_page_run,
    one_row_run,
    until,
    wait_for_answers,
    words,
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


def test_probabilities_by_pointer_keys_and_table(demo_run_folder, served):
    with served(demo_run_folder, answering(LONG, "negative")) as (page, server):
        send(page, "x")
        wait_for_answers(page)
        page.hover(".base .token >> nth=3")
        assert page.inner_text("#token").split("\n") == ["“␣positive,” 8.0 %", "“␣other” 64.4 %", "“⏎” 18.4 %"]
        page.hover("h1")
        until(page, "document.getElementById('token').hidden")
        page.focus(".base > .text")
        for key, status in (
            ("ArrowRight", "“This” 97.0 %"),
            ("ArrowRight", "“␣review” 55.0 %"),
            ("End", "“␣fortune.” 8.0 %"),
            ("ArrowRight", "“␣fortune.” 8.0 %"),
            ("Home", "“This” 97.0 %"),
            ("ArrowLeft", "“This” 97.0 %"),
        ):
            page.keyboard.press(key)
            assert page.inner_text("#status").startswith(status)
            assert page.is_visible("#token") and page.locator(".token.current").count() == 1
        page.keyboard.press("Escape")
        assert not page.is_visible("#token")
        assert "arrow keys" in page.get_attribute(".base > .text", "aria-label")
        page.click(".base .token-table summary")
        page.wait_for_selector(".base table")
        rows = page.locator(".base tbody tr").all_inner_texts()
        assert len(rows) == len(words(LONG)) and rows[3].split("\t")[:2] == ["“␣positive,”", "8.0 %"]
        plain = page.evaluate("getComputedStyle(document.querySelectorAll('.base .token')[3]).backgroundColor")
        page.click("#probabilities")
        shaded = page.evaluate("getComputedStyle(document.querySelectorAll('.base .token')[3]).backgroundColor")
        assert plain != shaded
        page.reload()
        page.wait_for_selector("body.ready")
        assert page.get_attribute("#probabilities", "aria-pressed") == "true"


def test_tokens_within_a_character_and_withheld_text(demo_run_folder, served):
    """A character of two tokens is one piece; text that comes later than its tokens finds them."""

    def entry(data, probability):
        one = chunk("x", tokens=[("x", probability)])["choices"][0]["logprobs"]["content"][0]
        return {**one, "token": data.decode(errors="replace"), "bytes": list(data), "top_logprobs": []}

    emoji = "🦔".encode()
    parts = [
        ("", [entry(emoji[:2], 0.5)]),
        ("🦔", [entry(emoji[2:], 0.5)]),
        ("", [entry(b" sto", 0.9)]),
        (" stop it", [entry(b"p it", 0.4)]),
        (" changed", [entry(b"other", 0.3)]),
        (" end", [entry(b" end", 0.7)]),
        ("", [entry(b"</s>", 0.99)]),
    ]

    async def script(body, request):
        for text, entries in parts:
            one = chunk(text)
            one["choices"][0]["logprobs"] = {"content": entries}
            yield one
        yield chunk(finish_reason="length")

    with served(demo_run_folder, script) as (page, server):
        send(page, "x")
        wait_for_answers(page)
        assert texts(page)[0] == "🦔 stop it changed end"
        assert page.locator(".base .token").all_inner_texts() == ["🦔", " sto", "p it", " changed", " end"]
        page.hover(".base .token >> nth=0")
        assert page.inner_text("#token") == "“🦔” 25.0 % (2 tokens)"
        assert "cut at the limit" in page.inner_text(".base h4")


def test_an_answer_without_probabilities(demo_run_folder, served):
    async def script(body, request):
        yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {"content": "plain"}, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        yield {"choices": [], "usage": {"completion_tokens": 5, "prompt_tokens": 3}}

    with served(demo_run_folder, script) as (page, server):
        send(page, "x")
        wait_for_answers(page)
        assert texts(page) == ["plain", "plain"] and not page.is_visible(".token-table >> nth=0")
        assert "5 tokens" in page.inner_text(".base h4")


def test_reasoning_is_folded(demo_run_folder, served):
    async def script(body, request):
        yield chunk(reasoning_content="Let me ")
        yield chunk(reasoning_content="think.")
        if body["model"] == "base":
            yield chunk("42", finish_reason="stop")
        else:
            yield chunk(finish_reason="length")

    with served(demo_run_folder, script) as (page, server):
        send(page, "x")
        wait_for_answers(page)
        assert page.inner_text(".base .thought summary") == "Reasoning, 13 characters"
        assert not page.is_visible(".base .thought .text")
        page.click(".base .thought summary")
        assert page.inner_text(".base .thought .text") == "Let me think."
        assert texts(page) == ["42", "(no answer: cut inside the reasoning)"]


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


COPIES = "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async text => { window.copied = text; }}});"


def test_copy(demo_run_folder, served):
    with served(demo_run_folder, answering("a ``` b\n", "c"), init=COPIES) as (page, server):
        page.select_option("#task", label="Free prompt")
        send(page, "p")
        wait_for_answers(page)
        page.click(".base .copy")
        until(page, "window.copied")
        assert page.evaluate("window.copied") == "a ``` b\n"
        page.click(".pair .head .copy")
        until(page, "window.copied.startsWith('###')")
        assert page.evaluate("window.copied") == (
            "### Prompt\n\nPrompt\n\n```text\np\n```\n\nBase\n\n````text\na ``` b\n\n````\n\nTuned\n\n```text\nc\n```\n"
        )


def test_history_is_kept_opened_and_deleted(demo_run_folder, served):
    with served(demo_run_folder, answering("long", "short")) as (page, server):
        for text in ("first", "second"):
            page.select_option("#task", label="Free prompt")
            send(page, text)
            wait_for_answers(page)
            page.click("#new")
        page.reload()
        page.wait_for_selector("body.ready")
        page.click("#show-history")
        assert [text.split("\n")[0] for text in page.locator(".history .open").all_inner_texts()] == ["second", "first"]
        page.click(".history .open >> nth=1")
        assert texts(page) == ["long", "short"] and not page.is_visible("#history")
        send(page, "third")
        wait_for_answers(page, 2)
        assert [turn["content"] for turn in server.requests[-1]["messages"]][::2] == ["first", "third"]
        page.click("#show-history")
        assert page.locator(".history .open").count() == 2, "the conversation is still one"
        page.click(".history .copy >> nth=0")
        assert page.locator(".history .open").count() == 1
        page.once("dialog", lambda dialog: dialog.accept())
        page.click("#history-clear")
        assert page.inner_text("#history-list") == "Nothing yet."
        assert page.evaluate("localStorage.getItem('alfine history demo')") == "[]"


@pytest.mark.parametrize("saved", ["{", "null", "3", '[1, {"id": 1}, null, {"id": "x", "turns": [], "start": {}}]'])
def test_a_damaged_history_does_not_stop_the_page(demo_run_folder, served, saved):
    script = f"localStorage.setItem('alfine history demo', {saved!r})"
    with served(demo_run_folder, answering(), init=script) as (page, server):
        page.click("#show-history")
        send(page, "x")
        wait_for_answers(page)
        assert page.locator(".history .open").count() >= 1


def test_without_storage_the_page_works_and_says_so(demo_run_folder, served):
    broken = "for (const name of ['localStorage', 'sessionStorage'])" + (
        "Object.defineProperty(window, name, {get() { throw new Error('denied'); }});"
    )
    with served(demo_run_folder, answering(), init=broken) as (page, server):
        send(page, "x")
        wait_for_answers(page)
        page.click("#show-history")
        assert page.inner_text("#history-note") == "This browser does not store data for this page."


def test_a_full_storage_drops_the_oldest(demo_run_folder, served):
    """Chromium stores 5,242,880 characters for a website."""
    filled = """localStorage.setItem("alfine history demo", JSON.stringify(["new", "old"].map((text) =>
      ({id: text, time: 1, start: {task: null, text, padding: "x".repeat(2590000)}, turns: []}))))"""

    async def script(body, request):
        yield chunk("y " * 40_000, finish_reason="stop")

    with served(demo_run_folder, script) as (page, server):
        page.evaluate(filled)
        page.select_option("#task", label="Free prompt")
        send(page, "newest")
        wait_for_answers(page)
        page.click("#show-history")
        assert [text.split("\n")[0] for text in page.locator(".history .open").all_inner_texts()] == ["newest", "new"]


SCREENS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "dark phone": {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}},
}


@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_is_accessible_on_every_screen(tmp_path, served, screen):
    async def script(body, request):
        yield chunk(reasoning_content="The writer mentions cold food and a high price.")
        text = LONG if body["model"] == "base" else "negative"
        for number, word in enumerate(words(text)):
            yield chunk(word, tokens=[(word, [0.97, 0.55, 0.31, 0.08, 0.999][number % 5])])
        yield chunk(finish_reason="stop")

    folder = demo_page_run(tmp_path / "quickstart", rows=80)
    with served(folder, script, **SCREENS[screen]) as (page, server):
        page.click("#setup summary")
        page.fill("#row", "4")
        page.click("#fill")
        until(page, "document.querySelector('#columns textarea').value")
        check(page)
        picture(page, f"{screen} prompt")
        page.click("#probabilities")
        page.click("#send")
        wait_for_answers(page)
        page.click(".thought summary >> nth=0")
        page.locator(".base .token >> nth=3").click()
        check(page)
        picture(page, f"{screen} answers")
        page.click(".base .token-table summary")
        page.wait_for_selector(".base table")
        check(page)
        picture(page, f"{screen} tokens")
        page.click("#show-history")
        check(page)
        picture(page, f"{screen} history")
        page.click("#blind")
        page.click("#rate-rows")
        page.wait_for_selector("#votes:visible")
        check(page)
        picture(page, f"{screen} blind")


def check(page):
    """No violation of any rule of axe, of any impact; and the page does not scroll sideways."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    violations = axe.Axe().run(page).response["violations"]
    assert {one["id"]: [node["html"] for node in one["nodes"]] for one in violations} == {}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def picture(page, name):
    if folder := os.environ.get("ALFINE_PICTURES"):
        page.screenshot(path=Path(folder) / f"serve-{name.replace(' ', '-')}.png", full_page=True)
