"""Forty answers that try to be more than text: in the browser, in Markdown and in the terminal they stay text."""

import io
import re

import pytest
from rich.console import Console

from pipelines.report import analyse, html, markdown, write_report
from pipelines.report.terminal import print_summary
from tests.report.run_folder import line, write_lines, write_run

RUN = "window.ran=1;alert(1)"
HOSTILE = [
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"</style><script>{RUN}</script>",
    f"<!--<script>{RUN}</script>-->",
    f"--><script>{RUN}</script>",
    f"]]><script>{RUN}</script>",
    f"</title></head><body onload={RUN}>",
    f"<img src=x onerror={RUN}>",
    f'"><img src=x onerror="{RUN}">',
    f"' onmouseover='{RUN}' autofocus onfocus='{RUN}",
    f"<svg onload={RUN}><a xlink:href='javascript:{RUN}'>x</a></svg>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    "<iframe src='https://example.com/frame'></iframe>",
    "<link rel=stylesheet href=https://example.com/style.css>",
    "<style>@import 'https://example.com/style.css'; * { display: none }</style>",
    "<meta http-equiv=refresh content='0;url=https://example.com/'>",
    "<base href=https://example.com/>",
    f"<form action=javascript:{RUN}><input name=rater autofocus><button>Go</button></form>",
    f"<a href=javascript:{RUN}>here</a> javascript:{RUN}",
    f"<object data='data:text/html,<script>{RUN}</script>'></object>",
    f"data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg== <embed src=data:text/html,{RUN}>",
    f"<details open ontoggle={RUN}><summary>x</summary></details>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}>",
    f"<template><script>{RUN}</script></template><noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    "</div></article></main><article class='pair'><h3>Injected</h3></article>",
    "&lt;script&gt;&#x3C;img src=x&#62; &amp;amp; &nbsp;&zwj;&bogus;",
    "{{ 7 * 7 }} {% raw %} {# no #} {{ analysis.__class__.__mro__ }} ${7*7} <%= 7 %>",
    "[link](javascript:alert(1)) ![image](https://example.com/x.png) <https://example.com>",
    "```\n</code>\n````html\n<b>bold</b>\n```` | a | b |\n|---|---|",
    "\u202egnihton\u202c \u2066isolated\u2069 \u200f\u061c\u200e marks",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b[2J\x9b31m \x08\x08\x7f",
    "NUL\x00inside\x00 and \x01\x02\x1f",
    "half \ud83d of \ude00 a pair \udfff",
    "\ufeffbyte order \u2028 line \u2029 paragraph \u0085 next \u200b zero \U000e0041 tag",
    "Z" + "\u0301\u0335\u0489" * 33_334,
    "x" * 10**6,
    "\n" * 5000 + "end",
    "[bold red]rich[/bold red] [link=https://example.com]x[/link] :smile: \\[",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u4f60\u597d \U0001f469\u200d\U0001f469\u200d\U0001f467",
    " \t\r\n \u00a0 ",
]
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
NAME = "\"><img src=x>'`|{{x}}[red]\u202e"
"""The name of a task, a metric's file, a title: whatever a user or a data set may choose."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Every text of the run is hostile; the two models differ."""
    completions = [
        [
            line(NAME, n, text, HOSTILE[n - 2], HOSTILE[n - shift], num_generated_tokens=96, finish_reason="length")
            for n, text in enumerate(HOSTILE)
        ]
        for shift in (0, 1)
    ]
    folder = write_run(tmp_path_factory.mktemp("runs") / "r", {NAME: "exact_match"}, *completions)
    for side, shift in (("base", 0), ("tuned", 1)):
        prompts = [
            {"title": text[:60], "prompt": text, "completion": HOSTILE[n - shift]} for n, text in enumerate(HOSTILE)
        ]
        write_lines(folder / side / "sample_prompts.jsonl", prompts)
    write_report(folder)
    return folder


SKELETON = """() => {
  const count = {};
  for (const one of document.querySelectorAll("body *")) count[one.localName] = (count[one.localName] ?? 0) + 1;
  return count;
}"""
OURS = {
    "a",
    "article",
    "b",
    "button",
    "dd",
    "del",
    "details",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "header",
    "input",
    "ins",
    "kbd",
    "label",
    "legend",
    "li",
    "main",
    "nav",
    "option",
    "output",
    "p",
    "pre",
    "script",
    "section",
    "select",
    "span",
    "strong",
    "summary",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
    "ul",
}
FIGURES = {"svg", "defs", "style", "g", "path", "use", "text", "clippath", "clipPath", "rect"}


def test_there_are_forty():
    assert len(HOSTILE) == len(set(HOSTILE)) == 40


def test_the_browser_shows_them_as_text(run, opened):
    dialogs = []
    with opened(run / "report.html", viewport={"width": 360, "height": 760}) as page:
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        before = page.evaluate(SKELETON)
        assert set(before) <= OURS | FIGURES, set(before) - OURS - FIGURES
        assert (before["article"], before["script"], before["form"]) == (1 + 2 * len(HOSTILE), 1, 2)
        assert page.locator("figure style").count() == before["style"]
        page.press("#more", "Enter")  # a click may miss it while the layout moves
        page.keyboard.press("f")
        for number in range(0, 40, 2):
            page.locator("#list > .pair").nth(number).scroll_into_view_if_needed()
        page.fill("[name=search]", "<script>")
        page.click(".copy >> visible=true >> nth=0")
        page.fill("[name=search]", "")
        page.uncheck("#differences")
        page.click("#rate-start")
        for _ in range(2 * len(HOSTILE)):
            page.keyboard.press("t")
        assert page.inner_text("#rate-count") == "80 of 80 rated."
        page.evaluate("document.querySelector('#rate-revealed table').replaceChildren()")  # the counts, our own
        assert page.evaluate(SKELETON) == before
        assert page.evaluate("window.ran === undefined") and dialogs == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for text in ("<script>window.ran=1;alert(1)</script>", "{{ 7 * 7 }}", "&lt;script&gt;&#x3C;img"):
            assert text in page.text_content("#list")


def test_the_page_has_no_control_characters(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert not CONTROLS.search(page)


def test_the_policy_allows_only_the_script_of_the_page(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page).group(1)
    script = re.search("<script>(.*?)</script>", page, re.DOTALL).group(1)
    assert f"script-src '{html._sha256(script)}'" in policy and "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1] and "http" not in policy


def test_markdown_has_them_as_text(run):
    text = markdown.render(analyse(run))
    assert not CONTROLS.search(text)
    # Outside of code spans and indented code, no character opens a tag, a link or a table cell.
    prose = re.sub(r"(`+) ?.*? ?\1(?!`)", "", "\n".join(one for one in text.splitlines() if not one.startswith("    ")))
    prose = re.sub(
        r"\\.", "", prose.replace("<details><summary>", "").replace("</summary>", "").replace("</details>", "")
    )
    assert not re.search(r"[<\[]", prose)
    assert len(text) < 40_000


def test_the_terminal_shows_them_as_text(run):
    out = io.StringIO()
    print_summary(analyse(run), Console(file=out, width=200))
    assert not CONTROLS.search(out.getvalue().replace("\n", ""))
    assert "[red]" in out.getvalue()


@pytest.mark.parametrize("answer", [answer for answer in HOSTILE if answer.strip()])
def test_a_completion_that_a_caveat_quotes(tmp_path, answer):
    """“Tuned always answers …” puts an answer into the terminal."""
    completions = [[line("mood", n, "p", ["a", "b"][n % 2], text) for n in range(3)] for text in ("ok", answer)]
    out = io.StringIO()
    print_summary(
        analyse(write_run(tmp_path / "r", {"mood": "exact_match"}, *completions)), Console(file=out, width=200)
    )
    assert "Tuned always answers" in out.getvalue()
    assert not CONTROLS.search(out.getvalue().replace("\n", ""))
