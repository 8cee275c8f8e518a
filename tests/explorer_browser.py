"""The explorer's page in a real Chromium: served from its folder, with every request written down."""

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import explorer_page
import pytest

ASSETS = explorer_page.ROOT / explorer_page.ASSETS
GRID, PEOPLE = (json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8")) for name in ("grid", "people"))
PATIENCE = 120_000
"""Milliseconds until a page that does not do what is waited for has failed: tests share their processor."""

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Says nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, as a static host would give it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


@contextmanager
def chromium() -> Iterator:
    """A running Chromium; skips, saying so, where there is none, or no Playwright to drive it."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no Playwright: python -m pip install -e '.[browser]'"
    )
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(PROGRAMS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def patient_page(browser, **options: object):
    """A new page that waits long enough for a machine which others use, too; ``options``: of Playwright's new_page."""
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    return page


class Visit:
    """A page that was opened, with what it asked for and what went wrong in it.

    Attributes:
        requests: addresses in their order. errors: that no code caught.
    """

    def __init__(
        self, browser, address: str, *, width: int = 1200, touch: bool = False, script: str = "", page=None
    ) -> None:
        """``page``: one that another visit has left; a new one costs the browser more than the page itself."""
        self.page = page or patient_page(browser, viewport={"width": width, "height": 800}, has_touch=touch)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.heard = {
            "request": lambda request: self.requests.append(request.url),
            "pageerror": lambda error: self.errors.append(str(error)),
        }
        for event, listener in self.heard.items():
            self.page.on(event, listener)
        if script:
            self.page.add_init_script(script)
        self.page.goto(address)

    def leave(self):
        """Gives the page back, with nothing of this visit in it."""
        self.page.goto("about:blank")
        for event, listener in self.heard.items():
            self.page.remove_listener(event, listener)
        self.page.set_viewport_size({"width": 1200, "height": 800})
        return self.page

    def settled(self) -> None:
        """Waits until the pictures of the first view are there and the browser has drawn it."""
        self.page.wait_for_function(
            "performance.getEntriesByType('resource').filter((one) => one.name.endsWith('.webp')).length >= 2"
            if self.page.url.startswith("http")
            else "document.readyState === 'complete'"
        )
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestIdleCallback(done)))")

    def near(self, part: str) -> None:
        """Scrolls to a part, and waits until what it plots is there."""
        self.page.locator(f"#{part}").scroll_into_view_if_needed()

    def load_model(self) -> None:
        """Presses the button and waits for the model's first answers."""
        self.near("maker")
        self.page.click("#load-model")
        self.page.wait_for_selector("#made-answers tbody tr")

    def addressed(self, *parts: str) -> None:
        """Waits until the address has these parts: it follows what is chosen with a pause."""
        for part in parts:
            self.page.wait_for_function("(part) => location.hash.includes(part)", arg=part)
