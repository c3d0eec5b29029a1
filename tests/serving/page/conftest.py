"""One Chromium for all tests, and pages on which nothing may fail."""

import re
from contextlib import contextmanager

import pytest

from tests.report.conftest import browser
from tests.serving.page_server import ScriptedServer, demo_page_run, serving

__all__ = ["browser"]


@pytest.fixture(scope="package")
def demo_run_folder(tmp_path_factory):
    """80 rows on three tasks and four sample prompts. No test may write into it."""
    return demo_page_run(tmp_path_factory.mktemp("runs") / "demo", rows=80)


@pytest.fixture
def visit(browser):
    """Opens the page of a server; fails on any request elsewhere, error, warning or unexpected dialog.

    `expected`: a regular expression of messages on the console that belong to the test, such as statuses of errors.
    """

    @contextmanager
    def open_page(address, init="", expected=None, **options):
        faults = []
        context = browser.new_context(reduced_motion="reduce", **options)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("request", lambda request: request.url.startswith(f"{address}/") or faults.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))

        def check(message):
            if message.type in ("error", "warning") and not (expected and re.search(expected, message.text)):
                faults.append(message.text)

        page.on("console", check)
        if init:
            page.add_init_script(init)
        page.goto(address)
        try:
            yield page
        finally:
            context.close()
        assert faults == []

    return open_page


@pytest.fixture
def served(visit):
    """served(folder, script) → the page, ready, and its server."""

    @contextmanager
    def serve(folder, script, key=None, **options):
        server = ScriptedServer(folder, script, key)
        with serving(server.app) as address, visit(address, **options) as page:
            if key is None:
                page.wait_for_selector("body.ready")
            yield page, server

    return serve
