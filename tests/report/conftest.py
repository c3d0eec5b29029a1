"""An example run, one Chromium for all tests, and pages on which nothing may fail."""

import shutil
from contextlib import contextmanager

import pytest

from pipelines.report import analyse
from tests.report.run_folder import demo_run

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="package")
def demo_analysis(tmp_path_factory):
    """80 rows on three tasks and four sample prompts."""
    return analyse(demo_run(tmp_path_factory.mktemp("runs") / "demo", rows=80))


@pytest.fixture(scope="package")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: the page is NOT tested"
    )
    paths = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not paths:
        pytest.skip("no chromium on this machine: the page is NOT tested in a browser")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=paths[0], args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file as a page; fails on any other request, error, warning or unexpected dialog."""

    @contextmanager
    def open_file(file, script="", fragment="", **options):
        address = file.as_uri()
        faults = []
        context = browser.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("request", lambda request: request.url.startswith((address, "blob:")) or faults.append(request.url))
        page.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        if script:
            page.add_init_script(script)
        page.goto(address + fragment)
        try:
            yield page
        finally:
            context.close()
        assert faults == []

    return open_file
