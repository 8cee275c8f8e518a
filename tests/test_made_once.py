"""Folders that are made once are made again when something of what was made is lost or damaged, and named then."""

from collections.abc import Callable
from pathlib import Path

import pytest
from choice_worlds import TINY
from small_world import DATA

from prefmoe.data import choice_world, miniature
from prefmoe.running import ranking

FEW = DATA.model_copy(update={"users": 2, "unseen_users": 0, "train_per_user": 2})

Made = tuple[Callable[[], None], Path, dict[str, bytes]]


@pytest.fixture(scope="module", params=["miniature", "choices", "gallery"])
def made(request, tmp_path_factory) -> Made:
    """What makes a folder, the folder, and the content of its files."""
    folder = tmp_path_factory.mktemp("made") / "data"
    make = {
        "miniature": lambda: miniature.build(FEW, folder),
        "choices": lambda: choice_world.build(TINY, folder),
        "gallery": lambda: ranking.item_pictures(folder),
    }[request.param]
    make()
    return make, folder, contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_that_were_lost_cut_or_changed_are_named_and_made_again(made: Made, caplog):
    make, folder, before = made
    one_of_a_kind = {Path(name).suffix: name for name in before if b'"made": {' not in before[name]}
    assert ".png" in one_of_a_kind
    for name in one_of_a_kind.values():
        content = before[name]
        for damage in (None, content[:-1], content.swapcase()):
            caplog.clear()
            (folder / name).unlink()
            if damage is not None:
                (folder / name).write_bytes(damage)
            make()
            assert f"{folder / name}: missing or changed, {folder} is made again" in caplog.text
            assert contents(folder) == before


@pytest.mark.parametrize("content", [b"null", b"[]", b"<html>", b"", b"{}", b'{"made": []}'])
def test_a_folder_whose_marker_holds_something_else_is_made_again(made: Made, content):
    make, folder, before = made
    (marker,) = (name for name in before if b'"made": {' in before[name])
    (folder / marker).write_bytes(content)
    (folder / next(name for name in before if name.endswith(".png"))).unlink()
    make()
    assert contents(folder) == before
