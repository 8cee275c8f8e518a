"""Makes the book in results/site/html, or in FOLDER/html: from what is committed, offline, with warnings as errors.

The explorer's own page goes into html/explorer/; what it lacks where there is no npm is said, and is no error. Slides
go into html/slides/, and the whole book once more into one zip.
"""

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import explorer_page
import site_zip

from prefmoe.config import RESULTS, ROOT

PARTS = {"site": ".", "notebooks": "notebooks", "course": "course", "docs": "docs", "figures/mini": "figures/mini"}
"""Folders of the clone, and where their files stand in the book: links between them stay as they are, but for those of
site/, whose pages stand one folder higher."""

SLIDES = Path("site/slides")
APART = (explorer_page.SOURCE, SLIDES)
"""Parts of site/ that are made by themselves, and stand in the book's folder as they are."""

NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_revealjs")

KINDS = {".md", ".ipynb", ".py", ".png", ".yaml", ".css", ".js", ".svg"}


def sources(clone: Path = ROOT) -> Iterator[tuple[Path, Path]]:
    """Every file that the book is made of, and its place in the book."""
    for part, place in PARTS.items():
        for path in sorted((clone / part).rglob("*")):
            inside = path.relative_to(clone / part)
            if any(path.is_relative_to(clone / apart) for apart in APART):
                continue
            if path.suffix in KINDS and not any(name.startswith((".", "__")) for name in inside.parts):
                yield path, Path(place) / inside


def assemble(folder: Path, clone: Path = ROOT) -> Path:
    """Puts the sources of the book into one folder, in which nothing else is left; equal files stay untouched, so that
    a second build reads what has changed."""
    wanted = set()
    for path, place in sources(clone):
        target = folder / place
        wanted.add(target)
        content = path.read_bytes()
        if path.parent == clone / "site" and path.suffix == ".md":
            content = content.replace(b"](../", b"](")
        if not (target.is_file() and target.read_bytes() == content):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    for path in folder.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
    return folder


def build(folder: Path, clone: Path = ROOT) -> int:
    """Builds the book in `folder`/html; returns Sphinx's exit status, which is not 0 after any warning.

    Pages are read again where they changed, and all are written: each has the contents of the whole book at its side.
    """
    # As in prefmoe.workflow.notebooks: nbformat would build a grammar for two seconds that no notebook needs.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    from sphinx.cmd.build import main as sphinx

    source = assemble(folder / "source", clone)
    if (folder / "html").is_dir():
        shutil.rmtree(folder / "html")  # pages that are gone, too
    places = [str(source), str(folder / "html"), "--doctree-dir", str(folder / "doctrees")]
    status = sphinx(["-b", "html", "-q", "--write-all", "--fail-on-warning", "--keep-going", *places])
    if status == 0:
        if (clone / explorer_page.SOURCE).is_dir():
            for sentence in explorer_page.build(folder / "html" / "explorer", clone):
                print(sentence, file=sys.stderr)
        if (clone / SLIDES).is_dir():
            import slides

            status = slides.build(folder / "slides", folder / "html" / "slides", clone)
        (folder / "html" / ".nojekyll").touch()  # Pages would leave out folders that begin with an underscore
        if (folder / "html" / site_zip.PAGE).is_file():
            site_zip.pack(folder / "html")
        print(f"{folder / 'html' / 'index.html'}")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS / "site")
    options = parser.parse_args()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        parser.exit(1, f"error: {', '.join(missing)} not installed: python -m pip install -e '.[docs]'\n")
    return build(options.folder.resolve())


if __name__ == "__main__":
    sys.exit(main())
