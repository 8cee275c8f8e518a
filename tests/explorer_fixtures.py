"""Pages of the explorer for tests in a browser: made once for a file of them, opened anew, or with its model loaded.

Not for the whole session: while Playwright is at work, nothing else in its process can start a loop of asyncio.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import explorer_page
import pytest
from explorer_browser import Visit, chromium, served


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def made(browser, tmp_path_factory) -> tuple[Path, list[str]]:
    """The page's folder, and what is missing in it."""
    folder = tmp_path_factory.mktemp("explorer") / "page"
    return folder, explorer_page.build(folder)


@pytest.fixture(scope="module")
def address(made) -> Iterator[str]:
    with served(made[0]) as found:
        yield f"{found}index.html"


@pytest.fixture
def visit(browser, address) -> Iterator:
    """visit(part of the address after #, ...): opens the page; it must not have run into an error."""
    opened: list[Visit] = []

    def go(chosen: str = "", **options) -> Visit:
        opened.append(Visit(browser, f"{address}#{chosen}", **options))
        return opened[-1]

    yield go
    for one in opened:
        one.page.close()
    assert [error for one in opened for error in one.errors] == []


@pytest.fixture(scope="module")
def with_plots(made) -> None:
    if any("plots" in sentence for sentence in made[1]):
        pytest.skip(" ".join(made[1]))


@pytest.fixture(scope="module")
def with_model(made) -> None:
    if made[1]:
        pytest.skip(" ".join(made[1]))


@pytest.fixture(scope="module")
def lively(browser, address, with_model) -> Iterator[Visit]:
    """A page that has been scrolled through, with the model loaded; ``first_view``: what it asked for before that."""
    one = Visit(browser, address)
    one.page.wait_for_load_state("networkidle")
    one.first_view = list(one.requests)
    for part in ("threshold", "maps", "resample"):
        one.near(part)
        one.page.wait_for_selector(f"#{part} .chart svg")
    one.load_model()
    one.page.evaluate("async () => { window.model = await explorer.model.load(); }")
    yield one
    assert one.errors == []


@pytest.fixture
def asking(lively):
    """For questions to the functions of a page with the model."""
    return lively.page
