"""Pictures that were looked at once: not again as long as nothing about their files changed, and again when it did."""

import json
import os

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from prefmoe.data import mmpb, shown
from prefmoe.data.rows import MMPBError

pytest_plugins = ["mmpb_fixtures"]


def test_a_picture_of_the_same_size_and_time_is_another_one(folder, tmp_path):
    """Copied over with its time preserved, as archives and rsync do, it left runs "complete and unchanged"."""
    seen, path = tmp_path / "complete.json", folder / "mmpb_clean/images/000004.png"
    picture, digests = Image.open(path).convert("RGB"), []
    for note in ("aaaa", "bbbb"):
        told = PngInfo()
        told.add_text("note", note)
        picture.save(path, pnginfo=told)
        os.utime(path, ns=(10**18, 10**18))
        digests.append(mmpb.read(folder, seen=seen).digest)
        assert digests[-1] == mmpb.read(folder).digest
    assert digests[0] != digests[1]


def test_a_picture_that_was_complete_is_decoded_again_when_it_changed(folder, tmp_path, monkeypatch):
    seen, decoded = tmp_path / "notes" / "complete.json", []
    check = shown.picture_mistake
    monkeypatch.setattr(shown, "picture_mistake", lambda data: (decoded.append(data), check(data))[1])

    def pictures_decoded() -> int:
        decoded.clear()
        assert mmpb.read(folder, seen=seen).digest == mmpb.read(folder).digest
        return len(decoded) - every

    every = 0
    every = pictures_decoded() // 2
    assert every > 10 and pictures_decoded() == 0
    path = folder / "mmpb_clean/images/000004.png"
    data = path.read_bytes()
    Image.new("RGB", (8, 8), "teal").save(path)
    assert pictures_decoded() == 1 and pictures_decoded() == 0
    path.write_bytes(data[: len(data) // 2])
    for _ in range(2):  # what is damaged is not remembered
        with pytest.raises(MMPBError, match="000004.png"):
            mmpb.read(folder, seen=seen)
    path.write_bytes(data)
    assert pictures_decoded() == 1
    notes = json.loads(seen.read_text())
    changed = [json.dumps(notes | change) for change in ({"pictures": [1]}, {"code": "of other rules"})]
    for content in ("[", "null", "[]", '{"code": 1}', *changed):
        seen.write_text(content)
        assert pictures_decoded() == every, content
        assert json.loads(seen.read_text()) == notes
