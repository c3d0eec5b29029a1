"""The conversations that the browser keeps."""

import pytest

from tests.serving.page.test_page import send, texts
from tests.serving.page_server import answering, chunk, wait_for_answers


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
