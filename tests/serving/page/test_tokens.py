"""Tokens and texts of answers in a real browser: probabilities, reasoning, copies."""

from tests.serving.page.test_page import LONG, send, texts
from tests.serving.page_server import answering, chunk, until, wait_for_answers, words


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


def entry(data, probability):
    """The entry of a token with these bytes in `logprobs.content`."""
    one = chunk("x", tokens=[("x", probability)])["choices"][0]["logprobs"]["content"][0]
    return {**one, "token": data.decode(errors="replace"), "bytes": list(data), "top_logprobs": []}


def with_tokens(text, *entries, **values):
    """A chunk with this text and these entries."""
    one = chunk(text, **values)
    one["choices"][0]["logprobs"] = {"content": list(entries)}
    return one


def test_tokens_that_are_not_in_the_text_are_left_out(demo_run_folder, served):
    """Markers of the reasoning and line breaks after them."""

    async def script(body, request):
        yield with_tokens("", entry(b"Hm", 0.5), reasoning_content="Hm")
        yield with_tokens("", entry(b"</think>", 0.9))
        yield with_tokens("", entry(b"\n\n", 0.8))
        yield with_tokens("42", entry(b"42", 0.25))
        yield with_tokens("!", entry(b"!", 0.75), finish_reason="stop")

    with served(demo_run_folder, script) as (page, server):
        send(page, "x")
        wait_for_answers(page)
        assert page.locator(".base .token").all_inner_texts() == ["42", "!"]
        page.hover(".base .token >> nth=0")
        assert page.inner_text("#token") == "“42” 25.0 %"


def test_tokens_within_a_character_and_withheld_text(demo_run_folder, served):
    """A character of two tokens is one piece; text that comes later than its tokens finds them."""

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
            yield with_tokens(text, *entries)
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
