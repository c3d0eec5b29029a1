"""The page on every screen: rules of accessibility, widths, pictures."""

import os
from pathlib import Path

import pytest

from tests.serving.page.test_page import LONG
from tests.serving.page_server import chunk, demo_page_run, until, wait_for_answers, words

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
