"""Size and speed of the report page of a run with a thousand examples: `python -m tests.benchmarks.report_page`."""

import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from pipelines.report import analyse, html, write_report
from tests.report.conftest import ARGUMENTS
from tests.report.run_folder import demo_run

ROWS = 1000
REPEATS = 5

# Milliseconds from the user's action to the next frame.
MEASURE_ACTION = """([selector, value]) => new Promise(done => {
  const control = document.querySelector(selector);
  const start = performance.now();
  if (control.type === "radio" || control.type === "checkbox") control.click();
  else { control.value = value; control.dispatchEvent(new Event("input", {bubbles: true})); }
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""
FIRST_PAINT = "performance.getEntriesByType('paint').find(entry => entry.name === 'first-contentful-paint').startTime"
ACTIONS = {
    "filter by outcome": [("[name=change][value=better]", ""), ("[name=change][value=all]", "")],
    "filter by task": [("[name=task]", "code"), ("[name=task]", "")],
    "search, first time": [("[name=search]", "return")],
    "search": [("[name=search]", "review"), ("[name=search]", "")],
    "other order": [("[name=order]", "best"), ("[name=order]", "worst")],
    "show differences": [("#differences", "")],
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = demo_run(Path(folder) / "thousand", rows=ROWS)
        start = time.perf_counter()
        analysis = analyse(run)
        analyzed = time.perf_counter()
        html.render(analysis)
        built = time.perf_counter()
        write_report(run)
        file = run / "report.html"
        print(f"{_cpu()}, {os.cpu_count()} cores; {len(analysis.examples):,} examples\n")
        _row("size of report.html", f"{file.stat().st_size / 1e6:.2f} MB", "2 MB")
        _row("score all rows", f"{analyzed - start:.1f} s", "")
        _row("render the page", f"{built - analyzed:.1f} s", "")
        _row("score and render", f"{built - start:.1f} s", "5 s")
        with sync_playwright() as playwright:
            chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            pages = [_open(browser, file) for _ in range(REPEATS)]
            _row("first paint", f"{statistics.median(page.evaluate(FIRST_PAINT) for page in pages):.0f} ms", "1,000 ms")
            for name, steps in ACTIONS.items():
                times = [page.evaluate(MEASURE_ACTION, list(step)) for page in pages for step in steps]
                _row(name, f"{statistics.median(times):.0f} ms, at most {max(times):.0f} ms", "100 ms")
            browser.close()


def _open(browser, file: Path):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(file.as_uri())
    page.wait_for_timeout(500)
    return page


def _row(name: str, measured: str, target: str) -> None:
    print(f"{name:22} {measured:28} {f'at most {target}' if target else ''}")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.system()
    return next((text.split(":")[1].strip() for text in lines if text.startswith("model name")), platform.system())


if __name__ == "__main__":
    main()
