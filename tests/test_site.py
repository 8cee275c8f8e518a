"""The book: it builds without a warning, asks nobody for anything, and its links and buttons lead somewhere."""

import importlib.util
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import explorer_page
import pytest
import site_zip
import warm_python
import yaml
from explorer_browser import chromium, patient_page
from site_book import NEEDED, assemble, sources

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "workflow/scripts"
REPOSITORY = "https://github.com/somebody/fork"
BUILD = "snakemake --cores 1 site"
CONTRACTS = (
    "metrics.score", "metrics.summarize", "metrics.collapse_by_bucket", "losses.profile_alignment",
    "losses.profile_contrast", "losses.residual_contrast", "losses.decorrelation", "losses.mmd",
    "losses.pairwise_preference", "models.moe_lora.expert_mixture", "models.moe_lora.published_gates",
)  # fmt: skip
FETCHED = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"), "video": ("src",),
    "audio": ("src",), "embed": ("src",), "object": ("data",), "input": ("src",), "track": ("src",),
}  # fmt: skip
"""What a browser asks for by itself; of <link>, everything but what only says where the page stands."""


def built(folder: Path, clone: Path = ROOT) -> subprocess.CompletedProcess:
    """The command that makes the book, of a clone."""
    places = f"Path({str(folder)!r}), Path({str(clone)!r})"
    code = f"from pathlib import Path; import site_book; exit(site_book.build({places}))"
    path = os.pathsep.join([str(SCRIPTS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    given = os.environ | {"PREFMOE_REPOSITORY": REPOSITORY, "PREFMOE_BRANCH": "trunk", "PYTHONPATH": path}
    return warm_python.run(["-c", code], SCRIPTS, given)


@pytest.fixture(scope="module", autouse=True)
def with_sphinx() -> Iterator[None]:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: python -m pip install -e '.[docs]'")
    warm_python.prepare(warm_python.BOOK)
    yield
    warm_python.stop()


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    """The folder of the built book: PREFMOE_BOOK, if it was built just now of this very clone (.ci/run)."""
    if built_before := os.environ.get("PREFMOE_BOOK"):
        return Path(built_before).resolve()
    folder = tmp_path_factory.mktemp("book")
    result = built(folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder / "html"


class Page(HTMLParser):
    """What a page fetches, links to and shows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.without_alt: list[str] = []
        self.formulas = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        self.fetched += [given[name] for name in FETCHED.get(tag, ()) if name in given]
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "index", "search", "author"):
            self.fetched.append(given["href"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "img" and not given.get("alt", "").strip():
            self.without_alt.append(given.get("src", "")[:80])
        self.formulas += tag == "math"


def read(folder: Path, known: Mapping[bytes, Page] | None = None) -> dict[Path, Page]:
    """All pages below a folder; `known`: some of them by their content, which need not be read again."""
    paths = [path for path in sorted(folder.rglob("*.html")) if path.parent.name != "_static"]
    return {path: (known or {}).get(path.read_bytes()) or Page(path) for path in paths}


@pytest.fixture(scope="module")
def pages(book) -> dict[Path, Page]:
    return read(book)


def _outside(address: str) -> bool:
    return bool(re.match(r"(?:[a-z]+:)?//", address))


def test_no_page_makes_a_browser_ask_anybody_for_anything(pages):
    found = {path.name: [a for a in page.fetched if _outside(a)] for path, page in pages.items()}
    assert not {name: addresses for name, addresses in found.items() if addresses}


def test_no_style_fetches_anything_either(book):
    styles = "\n".join(path.read_text(encoding="utf-8") for path in book.rglob("*.css"))
    assert styles and not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*", styles)


def broken(folder: Path, pages: dict[Path, Page]) -> list[tuple[str, str]]:
    """Addresses that lead nowhere, or out of the folder."""
    found = []
    for path, page in pages.items():
        for address in [*page.fetched, *page.links]:
            if _outside(address) or re.match("(?:data|mailto):", address):
                continue
            place, _, anchor = unquote(address).partition("#")
            target = (path.parent / place.partition("?")[0]).resolve() if place else path
            if not (target.exists() and target.is_relative_to(folder)):
                found.append((path.name, address))
            elif anchor and target in pages and anchor not in pages[target].ids:
                found.append((path.name, address))
    return found


def test_whatever_a_page_fetches_or_links_to_is_there(book, pages):
    assert broken(book.resolve(), pages) == []


def test_the_zip_is_the_whole_book_and_its_links_lead_to_what_is_in_it(book, pages, tmp_path):
    with zipfile.ZipFile(book / site_zip.NAME) as archive:
        archive.extractall(tmp_path)
    inside = (tmp_path / site_zip.FOLDER).resolve()
    files = {path.relative_to(inside) for path in inside.rglob("*") if path.is_file()}
    assert files | {Path(site_zip.NAME)} == {path.relative_to(book) for path in book.rglob("*") if path.is_file()}
    assert broken(inside, read(inside, {path.read_bytes(): page for path, page in pages.items()})) == []


def test_the_teachers_page_links_to_the_zip_with_its_size(book):
    text = (book / "teachers.html").read_text(encoding="utf-8")
    (megabytes,) = re.findall(rf'href="{site_zip.NAME}".*?, (\d+) MB', text)
    assert abs(int(megabytes) - (book / site_zip.NAME).stat().st_size / 1e6) <= 0.5


def test_a_teachers_page_without_a_place_for_the_zip_is_named(tmp_path):
    (tmp_path / "teachers.html").write_text("<p>Nothing.</p>")
    with pytest.raises(ValueError, match='teachers.html: expected one <p id="offline-zip">'):
        site_zip.pack(tmp_path)


def test_the_book_has_the_slides_with_their_notes_and_no_more_of_reveal_than_they_ask_for(book, pages):
    source = (ROOT / "site/slides/index.md").read_text(encoding="utf-8")
    text = (book / "slides/index.html").read_text(encoding="utf-8")
    assert text.count("<h1>") + text.count("<h2>") == len(re.findall("^##? ", source, re.M)) >= 14
    assert text.count('<aside class="notes">') == source.count(":::{revealjs-notes}")
    assert "slides/index.html" in pages[book / "teachers.html"].links
    assert sum(path.stat().st_size for path in (book / "slides").rglob("*") if path.is_file()) < 4e6


def test_every_picture_has_an_alternative_text(pages):
    assert not {path.name: page.without_alt for path, page in pages.items() if page.without_alt}


PHONE, LAPTOP = {"width": 390, "height": 800}, {"width": 1280, "height": 800}
WIDER = """() => {
  const root = document.scrollingElement, phone = root.clientWidth;
  if (root.scrollWidth <= phone) return [];
  const kept = (part) => part !== root && (["auto", "scroll"].includes(getComputedStyle(part).overflowX)
    || getComputedStyle(part).position === "fixed" || (part.parentElement && kept(part.parentElement)));
  return [...document.body.querySelectorAll("*")].filter(
    (part) => part.getBoundingClientRect().right > phone && !kept(part)).map((part) => part.outerHTML.slice(0, 80));
}"""
"""The parts for which a page scrolls sideways; what scrolls by itself, and what is out of the way, are none."""


def test_no_page_scrolls_sideways_on_a_phone(book, pages, tmp_path):
    """Exercises are left out: they are the pages with solutions, without these and their outputs."""
    wide, apart = (tmp_path / f"{name}.html" for name in ("wide", "apart"))
    wide.write_text('<!doctype html><p>text</p><div id="table" style="width: 500px">wide</div>')
    apart.write_text(f'<!doctype html><div style="overflow-x: auto">{wide.read_text()}</div>')
    shown = [path for path in pages if "exercises" not in path.parts and "slides" not in path.parts]
    assert len(shown) > 60 and {book / "index.html", book / "notebooks/07_main_table.html"} < set(shown)
    found = {}
    with chromium() as browser:
        page = patient_page(browser, viewport=PHONE)
        for path in (wide, apart, *shown):
            page.goto(path.as_uri())
            found[path] = page.evaluate(WIDER)
    assert len(found.pop(wide)) == 1 and not found.pop(apart)
    assert not {path.relative_to(book).as_posix(): parts[:3] for path, parts in found.items() if parts}


def test_figures_have_the_room_of_a_wide_screen_and_lines_of_text_stay_short(book):
    widest = "parts => Math.max(...[...document.querySelectorAll(parts)].map((part) => part.clientWidth))"
    with chromium() as browser:
        page = patient_page(browser, viewport={"width": 1920, "height": 1000})
        page.goto((book / "notebooks/07_main_table.html").as_uri())
        figure, text = (page.evaluate(widest, parts) for parts in (".cell_output img", ".bd-article section > p"))
    assert figure > 1000 and text < 800


@pytest.mark.parametrize(("place", "cell"), [("docs/results.html", "td"), ("notebooks/07_main_table.html", "th")])
def test_a_wide_table_says_that_it_goes_on_and_keeps_the_names_of_its_rows_while_it_is_scrolled(book, place, cell):
    with chromium() as browser:
        page = patient_page(browser, viewport=LAPTOP)
        page.goto((book / place).as_uri())
        hint = page.locator("p.scroll-hint:visible").first
        table = page.locator("p.scroll-hint:visible + *").first
        left = lambda: table.locator(f"{cell}:has-text('PrefMoE before')").first.bounding_box()["x"]  # noqa: E731
        edge = table.bounding_box()["x"]
        assert "to the right" in hint.inner_text() and "goes-on" in table.get_attribute("class")
        table.evaluate("one => one.scrollLeft = 300")
        assert abs(left() - edge) <= 1
        table.evaluate("one => one.scrollLeft = one.scrollWidth")
        page.wait_for_function("one => !one.classList.contains('goes-on')", arg=table.element_handle())
        assert abs(left() - edge) <= 1


def test_whether_users_are_told_apart_is_seen_without_scrolling_and_hardware_comes_last(book):
    with chromium() as browser:
        page = patient_page(browser, viewport=LAPTOP)
        page.goto((book / "docs/results.html").as_uri())
        hidden = page.evaluate(
            """() => [...document.querySelectorAll("th")].filter((th) => th.innerText === "auc_same").map((head) => {
                const [place, window] = [head, head.closest("div")].map((part) => part.getBoundingClientRect());
                return place.right - window.right;
            })"""
        )
        assert len(hidden) > 10 and max(hidden) <= 0
        assert "hardware" in page.locator("table").last.inner_text()


def test_axe_finds_nothing_serious_on_a_page_of_every_kind(book):
    modules, reason = explorer_page.installed(ROOT, explorer_page.CACHE)
    if modules is None:
        pytest.skip(reason)
    shown = ["index", "docs/results", "notebooks/07_main_table", "course/exercises/unit0_two_users_one_picture",
             "glossary", "teachers", "api", "slides/index"]  # fmt: skip
    found = {}
    with chromium() as browser:
        for name in shown:
            page = patient_page(browser, viewport=LAPTOP)
            page.goto((book / f"{name}.html").as_uri())
            page.add_script_tag(path=modules / "axe-core/axe.min.js")
            for rule in page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]:
                if rule["impact"] in ("serious", "critical"):
                    found[name, rule["id"]] = [node["html"][:200] for node in rule["nodes"]]
            page.close()
    assert found == {}


def test_every_notebook_and_page_of_the_clone_is_a_page(book):
    named = {place.with_suffix(".html") for _, place in sources() if place.suffix in (".md", ".ipynb")}
    assert len(named) > 40 and not [place for place in named if not (book / place).is_file()]


def test_every_notebook_stands_once_in_the_contents_under_the_page_that_leads_to_it():
    text = (ROOT / "site/index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```{toctree}\n:hidden:\n:glob:\n:caption: (.*?)\n(.*?)```", text, re.S)
    numbers = [path.name[:2] for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    parts = {
        caption: [path.name[:2] for line in lines.splitlines() for path in ROOT.glob(f"{line}.ipynb")]
        for caption, lines in blocks
    }
    assert sorted(number for found in parts.values() for number in found) == numbers
    for page, captions in {"results": ["Results", "Appendices"], "other_papers": ["The other papers"]}.items():
        led = set(re.findall(r"\(\.\./notebooks/(\d\d)_", (ROOT / f"site/{page}.md").read_text(encoding="utf-8")))
        assert led == {number for caption in captions for number in parts[caption]}, page


def test_links_of_the_site_s_pages_lead_somewhere_in_the_repository_too():
    """They stand one folder lower there: whoever came from README to the course found no unit."""
    for page in sorted((ROOT / "site").glob("*.md")):
        links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
        made = ("explorer/", "slides/", "prefmoe-book.zip")  # of the book alone
        gone = [link for link in links if not link.startswith(made) and not (page.parent / link).exists()]
        assert not gone, (page.name, gone)


def test_notebooks_are_opened_elsewhere_from_the_repository_that_the_book_is_built_for(book):
    notebooks = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "course").rglob("*.ipynb")]
    assert len(notebooks) > 30
    for place in (notebook.relative_to(ROOT).as_posix() for notebook in notebooks):
        text = (book / place).with_suffix(".html").read_text(encoding="utf-8")
        assert f"https://colab.research.google.com/github/somebody/fork/blob/trunk/{place}" in text
        assert f"https://mybinder.org/v2/gh/somebody/fork/trunk?urlpath=lab/tree/{place}" in text
        first = f"!git clone --depth 1 --branch trunk {REPOSITORY} prefmoe &amp;&amp; pip install -e ./prefmoe"
        assert text.count(first) == 1
    assert 'id="on-colab"' not in (book / "docs/results.html").read_text(encoding="utf-8")


def test_formulas_are_drawn_by_the_browser(pages):
    by_name = {path.stem: page for path, page in pages.items()}
    assert by_name["17_prototypes_step_by_step"].formulas > 3 and by_name["glossary"].formulas > 2


def test_outputs_are_those_of_the_committed_notebooks(book):
    page = (book / "notebooks/07_main_table.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") == (ROOT / "notebooks/07_main_table.ipynb").read_text(
        encoding="utf-8"
    ).count("data:image/webp;base64,")


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_function_that_checks_call_by_name_is_explained(pages, name):
    (api,) = (page for path, page in pages.items() if path.name == "api.html")
    assert f"prefmoe.{name}" in api.ids


# A clone of two pages


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone whose book is one page with a link."""
    folder = tmp_path / "clone"
    (folder / "site").mkdir(parents=True)
    (folder / "site/_static").mkdir()
    for name in ("conf.py", "_static/book.css", "_static/book.js"):
        (folder / "site" / name).write_bytes((ROOT / "site" / name).read_bytes())
    start = "# Start\n\n[a page](../docs/there.md), $1 + 1$\n\n```{toctree}\ndocs/there\n```\n"
    (folder / "site/index.md").write_text(start)
    (folder / "docs").mkdir()
    (folder / "docs/there.md").write_text("# There\n")
    return folder


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("# There\n\n[gone](gone.md)\n", "gone.md"),
        ("# There\n\n$\\unheard{x}$\n", "there.md.*unheard"),
    ],
)
def test_a_mistake_in_a_page_ends_the_build_and_is_named(clone, tmp_path, text, named):
    (clone / "docs/there.md").write_text(text)
    result = built(tmp_path / "book", clone)
    assert result.returncode != 0 and re.search(named, result.stderr, re.S)


def test_sources_that_are_gone_leave_the_book_and_equal_ones_are_not_touched(clone, tmp_path):
    folder = tmp_path / "source"
    assemble(folder, clone)
    before = (folder / "index.md").stat().st_mtime_ns
    (clone / "docs/there.md").rename(clone / "docs/elsewhere.md")
    assemble(folder, clone)
    assert sorted(p.name for p in folder.rglob("*.md")) == ["elsewhere.md", "index.md"]
    assert (folder / "index.md").stat().st_mtime_ns == before


def test_a_second_build_has_no_page_that_is_gone_and_all_pages_know_the_new_ones(clone, tmp_path):
    folder = tmp_path / "book"
    assert built(folder, clone).returncode == 0
    (clone / "docs/new.md").write_text("# Brand new\n\n[start](../index.md)\n")
    (clone / "docs/there.md").unlink()
    (clone / "site/index.md").write_text("# Start\n\n```{toctree}\ndocs/new\ndocs/other\n```\n")
    (clone / "docs/other.md").write_text("# Other\n")
    assert built(folder, clone).returncode == 0
    (clone / "docs/new.md").write_text("# Newer still\n")
    assert built(folder, clone).returncode == 0
    assert not (folder / "html/docs/there.html").exists()
    assert "Newer still" in (folder / "html/docs/other.html").read_text(encoding="utf-8")


def test_whoever_forks_publishes_with_the_command_of_the_readme():
    workflow = yaml.safe_load((ROOT / ".github/workflows/site.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = " ".join(step.get("run", "") for step in steps)
    assert BUILD in commands and BUILD in (ROOT / "README.md").read_text(encoding="utf-8")
    assert BUILD in (ROOT / ".ci/run").read_text(encoding="utf-8")
    (upload,) = (step for step in steps if "upload-pages-artifact" in step.get("uses", ""))
    assert upload["with"]["path"] == "results/site/html"
