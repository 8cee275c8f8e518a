"""Pages of the explorer for tests in a browser: made once, opened anew, or with its model loaded.

Not for the whole session: while Playwright is at work, nothing else in its process can start a loop of asyncio.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import explorer_page
import pytest
from explorer_browser import Visit, chromium, served
from filelock import FileLock


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def made(browser, tmp_path_factory) -> tuple[Path, list[str]]:
    """The page's folder, and what is missing in it; processes that share the tests out share the folder as well."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, told = base / "explorer-page", base / "explorer-missing.json"
    with FileLock(base / "explorer-page.lock"):
        if not told.is_file():
            told.write_text(json.dumps(explorer_page.build(folder)), encoding="utf-8")
    return folder, json.loads(told.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def address(made) -> Iterator[str]:
    with served(made[0]) as found:
        yield f"{found}index.html"


@pytest.fixture(scope="module")
def left(browser) -> list:
    """Pages that visits have left."""
    return []


@pytest.fixture
def visit(browser, address, left) -> Iterator:
    """visit(part of the address after #, ...): opens the page; it must not have run into an error."""
    opened: list[tuple[Visit, bool]] = []

    def go(chosen: str = "", **options) -> Visit:
        page = left.pop() if left and not options else None
        opened.append((Visit(browser, f"{address}#{chosen}", page=page, **options), not options))
        return opened[-1][0]

    yield go
    for one, plain in opened:
        if plain:
            left.append(one.leave())
        else:
            one.page.close()
    assert [error for one, _ in opened for error in one.errors] == []


@pytest.fixture(scope="module")
def with_plots(made) -> None:
    if any("plots" in sentence for sentence in made[1]):
        pytest.skip(" ".join(made[1]))


@pytest.fixture(scope="module")
def with_model(made) -> None:
    if made[1]:
        pytest.skip(" ".join(made[1]))


@pytest.fixture(scope="module")
def lively_address(address) -> str:
    """Where the page with the model is opened: by a server, unless a file of tests says otherwise."""
    return address


@pytest.fixture(scope="module")
def lively(browser, lively_address, with_model) -> Iterator[Visit]:
    """A page that has been scrolled through, with the model loaded; ``first_view``: what it asked for before that."""
    one = Visit(browser, lively_address)
    one.settled()
    one.first_view = list(one.requests)
    for part in ("threshold", "maps", "resample"):
        one.near(part)
        one.page.wait_for_selector(f"#{part} .chart svg")
    one.load_model()
    yield one
    inside = (lively_address.removesuffix("index.html"), "data:", "blob:")
    assert one.errors == [] and [name for name in one.requests if not name.startswith(inside)] == []


@pytest.fixture(scope="module")
def asking(browser, address, with_model) -> Iterator:
    """A page for questions to its functions, to the model among them, which nobody has looked at."""
    one = Visit(browser, address)
    one.page.evaluate("async () => { window.model = await explorer.model.load(); }")
    yield one.page
    assert one.errors == []
