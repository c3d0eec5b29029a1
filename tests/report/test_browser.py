"""The page in a real browser: every control works, by mouse and by keyboard."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.report import analyse
from pipelines.report.results import GateResult
from tests.report.run_folder import add_few_shot, line, write_page, write_run

SHOWN = "#list > .pair:not([hidden])"
GATES = [
    GateResult("code", True, "code did not decrease."),
    GateResult("sentiment", False, "sentiment reached 87.5, not 95."),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory, demo_analysis):
    """A page of 80 rows on three tasks and four sample prompts."""
    return write_page(tmp_path_factory.mktemp("page"), replace(demo_analysis, gates=GATES))


def shown(page, attribute="change"):
    return page.eval_on_selector_all(SHOWN, f"all => all.map(one => one.dataset.{attribute} ?? null)")


def test_filters_show_what_they_count(demo, opened):
    with opened(demo) as page:
        page.press("#more", "Enter")  # a click may miss it while the layout moves
        assert len(shown(page)) == 80 and not page.is_visible("#more")
        for value in ("worse", "better", "same"):
            page.locator(f"label:has([value={value}])").click()
            changes = shown(page)
            assert set(changes) == {value}
            assert len(changes) == min(25, int(page.inner_text(f"[data-count={value}]")))
        page.locator("label:has([value=both-wrong])").click()
        assert set(shown(page, "bothWrong")) == {""}
        page.locator("label:has([value=all])").click()
        page.select_option("[name=task]", "summaries")
        assert set(shown(page, "task")) == {"summaries"} and page.inner_text("[data-count=all]") == str(
            len(shown(page))
        )


def test_order_search_and_more(demo, opened):
    with opened(demo) as page:
        assert len(shown(page)) == 25 and page.inner_text("#more") == "Show 55 more of 55"
        first = page.inner_text(f"{SHOWN} >> nth=0")
        assert shown(page)[0] == "worse"
        page.select_option("[name=order]", "best")
        assert shown(page)[0] == "better"
        page.select_option("[name=order]", "worst")
        assert page.inner_text(f"{SHOWN} >> nth=0") == first
        page.fill("[name=search]", "WRITE A PYTHON FUNCTION")
        assert len(shown(page)) >= 1 and set(shown(page, "task")) == {"code"}
        page.fill("[name=search]", "no text has this")
        assert shown(page) == [] and page.is_visible("#none")
        page.fill("[name=search]", "")
        assert len(shown(page)) == 25 and not page.is_visible("#none")


def test_a_link_opens_an_example_that_is_not_shown(demo, opened):
    with opened(demo) as page:
        hidden = page.get_attribute("#list > .pair[hidden]", "id")
    with opened(demo, fragment=f"#{hidden}") as page:
        assert page.is_visible(f"[id={hidden}]")
        page.wait_for_timeout(200)
        assert page.evaluate("Math.abs(document.querySelector(':target').getBoundingClientRect().top)") < 40


def test_keys_step_through_the_examples_but_not_while_typing(demo, opened):
    with opened(demo) as page:
        page.evaluate("document.getElementById('filters').scrollIntoView()")
        ids = page.eval_on_selector_all(SHOWN, "all => all.map(one => one.id)")
        visited = []
        for key in "jjjk":
            page.keyboard.press(key)
            visited.append(page.evaluate("document.activeElement.id"))
        assert visited == [ids[0], ids[1], ids[2], ids[1]]
        focused = page.locator(":focus")
        assert focused.evaluate("one => one.matches(':focus-visible') && getComputedStyle(one).outlineStyle") == "solid"
        assert focused.evaluate("one => Math.abs(one.getBoundingClientRect().top) < 40")
        page.focus("[name=search]")
        page.keyboard.type("jkf")
        assert page.input_value("[name=search]") == "jkf" and not page.is_checked("#differences")


def test_the_last_example_leads_to_more(demo, opened):
    with opened(demo) as page:
        page.locator(f"{SHOWN} >> nth=24").evaluate("one => { one.tabIndex = -1; one.focus(); }")
        page.keyboard.press("j")
        assert len(shown(page)) == 80
        assert page.evaluate("[...document.querySelectorAll('#list > .pair')].indexOf(document.activeElement)") == 25


MARKS = """() => [...document.querySelectorAll(".pair:has(ins, del)")].map(pair => {
  const read = (part, tag) => {
    const content = pair.querySelector(part + " .content").cloneNode(true);
    content.querySelectorAll(tag).forEach(mark => mark.remove());
    return content.textContent.replace(/\\s+/g, "");
  };
  return [read(".base", "del"), read(".tuned", "ins")];
})"""


def test_differences_leave_the_common_words_and_the_text(demo, opened):
    with opened(demo) as page:
        text = page.text_content("main")
        page.evaluate("document.getElementById('list').scrollIntoView()")
        page.check("#differences")
        page.wait_for_selector("#list ins")
        marks = page.evaluate(MARKS)
        assert marks and all(base == tuned for base, tuned in marks)
        assert len(marks) < 30, "only what is near the screen is compared"
        assert page.text_content("main") == text
        page.keyboard.press("f")
        assert not page.is_checked("#differences") and page.locator("ins, del").count() == 0
        assert page.text_content("main") == text and page.inner_text("#status") == "Differences hidden"
        page.keyboard.press("f")
        page.wait_for_selector("#list ins")


def test_words_that_differ_are_marked_in_every_script(tmp_path, opened):
    answers = [
        ("这个评论是正面的", "这个评论是负面的", "正面", "负面"),
        ("หนังดีมาก", "หนังแย่มาก", "ดี", "แย่"),
        ("यह की है", "यह कि है", "की", "कि"),
        ("ພາສາ ລາວ", "ພາສາ ໄທ", "ລາວ", "ໄທ"),
    ]
    completions = [[line("mood", n, "p", "r", texts[model]) for n, texts in enumerate(answers)] for model in (0, 1)]
    with opened(write_page(tmp_path, analyse(write_run(tmp_path / "r", {"mood": "rouge"}, *completions)))) as page:
        page.keyboard.press("f")
        for n, (_, _, out, new) in enumerate(answers):
            page.locator(f"#mood-{n}").scroll_into_view_if_needed()
            page.wait_for_selector(f"#mood-{n} ins")
            assert page.locator(f"#mood-{n} del").all_inner_texts() == [out]
            assert page.locator(f"#mood-{n} ins").all_inner_texts() == [new]


@pytest.mark.parametrize(
    ("text", "typed"),
    [("caf\u0065\u0301", "CAFÉ"), ("ΟΔΟΣ", "οδοσ"), ("straße", "STRASSE"), ("ｶﾞ", "ガ"), ("İyi", "iyi")],
)
def test_a_search_finds_what_reads_the_same(tmp_path, opened, text, typed):
    completions = [[line("mood", n, f"{[text, 'other'][n]} {n}", "r", "c") for n in range(2)]] * 2
    with opened(write_page(tmp_path, analyse(write_run(tmp_path / "r", {"mood": "rouge"}, *completions)))) as page:
        page.fill("[name=search]", typed)
        assert shown(page, "row") == ["0"]


def test_words_that_differ_are_marked_and_huge_pairs_are_not(tmp_path, opened):
    answers = {0: ("the quick brown fox", "the slow brown foxes"), 1: ("?!" * 2000, "!?," * 1333), 2: ("", "x")}
    completions = [[line("mood", n, "p", "r", answers[n][model]) for n in range(3)] for model in (0, 1)]
    page_file = write_page(tmp_path, analyse(write_run(tmp_path / "r", {"mood": "rouge"}, *completions)))
    with opened(page_file) as page:
        page.keyboard.press("f")
        page.locator("#mood-0").scroll_into_view_if_needed()
        page.wait_for_selector("#mood-0 ins")
        assert page.locator("#mood-0 del").all_inner_texts() == ["quick", "fox"]
        assert page.locator("#mood-0 ins").all_inner_texts() == ["slow", "foxes"]
        for row in (1, 2):
            page.locator(f"#mood-{row}").scroll_into_view_if_needed()
        page.wait_for_timeout(200)
        assert page.locator("#mood-1 ins, #mood-1 del, #mood-2 ins").count() == 0


CLIPBOARD = (
    "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async text => { window.copied = text; }}});"
)
NO_CLIPBOARD = """Object.defineProperty(navigator, 'clipboard', {value: undefined});
document.addEventListener('copy', () => { window.copied = document.activeElement.value; });"""


@pytest.mark.parametrize("script", [CLIPBOARD, NO_CLIPBOARD], ids=["clipboard", "without"])
def test_an_example_is_copied_as_markdown(tmp_path, opened, script):
    completions = [[line("mood", 0, "a ```` b", "yes", answer)] for answer in ("no", "yes")]
    page_file = write_page(tmp_path, analyse(write_run(tmp_path / "r", {"mood": "exact_match"}, *completions)))
    with opened(page_file, script=script) as page:
        page.click("#mood-0 .copy")
        page.wait_for_function("window.copied")
        assert page.evaluate("window.copied") == (
            "### mood, row 0: better\n\nPrompt\n\n`````text\na ```` b\n`````\n\nReference\n\n```text\nyes\n```\n\n"
            "Base wrong\n\n```text\nno\n```\n\nTuned right\n\n```text\nyes\n```\n"
        )
        page.wait_for_function("document.querySelector('.copy').textContent === 'copied'")
        assert page.evaluate("document.activeElement.className") == "copy"


SCREENS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 760}, "has_touch": True, "is_mobile": True},
    "dark phone": {"color_scheme": "dark", "viewport": {"width": 360, "height": 760}},
}


@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_is_accessible_on_every_screen(demo, opened, screen):
    with opened(demo, reduced_motion="reduce", **SCREENS[screen]) as page:
        page.check("#differences")
        page.wait_for_selector("ins")
        check(page)
        picture(page, screen)
        page.locator(SHOWN).first.scroll_into_view_if_needed()
        picture(page, f"{screen} examples")
        page.click("#rate-start")
        check(page)
        picture(page, f"{screen} rating")


def check(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    violations = axe.Axe().run(page).response["violations"]
    serious = {
        violation["id"]: violation["nodes"][0]["html"]
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    }
    assert serious == {}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"


def test_print_has_no_controls(demo, opened):
    with opened(demo, viewport={"width": 700, "height": 990}, color_scheme="dark") as page:
        page.emulate_media(media="print")
        for control in ("#filters", "#more", "#rate", "nav", ".copy >> nth=0"):
            assert not page.is_visible(control)
        assert page.is_visible(f"{SHOWN} >> nth=0") and page.is_visible(".gates")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator(SHOWN).first.evaluate("one => getComputedStyle(one).breakInside") == "avoid"
        picture(page, "print")


def test_without_scripts_all_examples_and_no_controls_are_shown(demo, opened):
    with opened(demo, java_script_enabled=False) as page:
        assert page.locator(SHOWN).count() == 80
        for control in ("#filters", "#more", "#rate", ".copy >> nth=0"):
            assert not page.is_visible(control)


def picture(page, name):
    if folder := os.environ.get("ALFINE_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name.replace(' ', '-')}.png")


@pytest.mark.parametrize("screen", SCREENS)
def test_the_answers_of_the_base_with_examples_are_a_third_column(tmp_path, opened, screen):
    answers = [["no", "quite so"], ["maybe yes", "yes"], ["yes", "yes"]]
    base, few_shot, tuned = (list(column) for column in zip(*[[*one, "yes"] for one in answers], strict=True))
    completions = [[line("mood", n, f"p{n}", "yes", text) for n, text in enumerate(side)] for side in (base, tuned)]
    folder = add_few_shot(write_run(tmp_path / "r", {"mood": "exact_match"}, *completions), {"mood": few_shot})
    with opened(write_page(tmp_path, analyse(folder)), script=CLIPBOARD, **SCREENS[screen]) as page:
        boxes = [
            page.locator(f"#mood-0 .completions > {part}").bounding_box() for part in (".base", ".few-shot", ".tuned")
        ]
        axis = "y" if "phone" in screen else "x"
        assert sorted(boxes, key=lambda box: box[axis]) == boxes
        assert len({round(box["x" if axis == "y" else "y"]) for box in boxes}) == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[screen]["viewport"]["width"]
        page.fill("[name=search]", "quite SO")
        assert shown(page, "row") == ["0"]
        page.click("#mood-0 .copy")
        page.wait_for_function("window.copied")
        assert "Base + 4 examples wrong\n\n```text\nquite so\n```\n\nTuned right" in page.evaluate("window.copied")
        assert "tuning was" in page.inner_text("header").lower()
        check(page)
