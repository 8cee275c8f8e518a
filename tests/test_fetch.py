"""Fetching: complete and verified from folder, archive or server; resumable; clear when it fails."""

import hashlib
import os
import random
import shutil
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from synthetic_mmpb import make

from prefmoe.cli import main
from prefmoe.data import fetch as module
from prefmoe.data import mmpb
from prefmoe.data.fetch import FetchError, Release, fetch
from prefmoe.system.places import data_folder

PICTURE = "mmpb_clean/images/000005.png"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("published") / "data")


@pytest.fixture(scope="module")
def release(published) -> Release:
    return Release.of(published)


def files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def server(published, monkeypatch):
    """A web server for the published files; ``faults`` maps a path to answers before the right one."""
    faults: dict[str, list] = {}
    served: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            path = self.path.lstrip("/")
            served.append(path)
            waiting = faults.get(path)
            if not waiting:
                return super().do_GET()
            fault = waiting.pop(0)
            if isinstance(fault, bytes):
                self.send_response(200)
                self.send_header("Content-Length", str(len(fault)))
                self.end_headers()
                self.wfile.write(fault)
            elif fault == "truncated":
                data = (published / path).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
            else:
                self.send_response(fault)
                self.send_header("Retry-After", "0")
                self.end_headers()
            return None

        def log_message(self, *_):
            pass

    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(published)))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))  # looks that often whether to end
    thread.start()
    httpd.address, httpd.faults, httpd.served = f"http://127.0.0.1:{httpd.server_port}/", faults, served
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_checksums_are_those_of_sha256sum(published, release, tmp_path):
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in files(published).items()]
    (tmp_path / "noted").write_text("".join(lines))
    assert Release.noted(tmp_path / "noted", "") == release and len(release.files) == 48


def test_a_folder_is_copied_and_readable(published, release, tmp_path):
    folder = fetch(tmp_path / "new", source=published, release=release)
    assert contents(folder) == contents(published)
    assert mmpb.read(folder).digest == mmpb.read(published).digest


def test_folders_may_lie_at_home(published, release, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(published, tmp_path / "copy")
    assert fetch("~/here", source="~/copy", release=release) == tmp_path / "here"
    assert contents(tmp_path / "here") == contents(published)


@pytest.mark.parametrize("prefix", ["", "data/", "PrefMoE-b34e56a/data/"])
def test_an_archive_of_the_data_or_of_the_repository_will_do(published, release, tmp_path, prefix):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for name, data in contents(published).items():
            archive.writestr(prefix + name, data)
        archive.writestr("../outside.txt", "not wanted")
    folder = fetch(tmp_path / "new", source=tmp_path / "archive.zip", release=release)
    assert contents(folder) == contents(published)
    assert not (tmp_path / "outside.txt").exists()


def test_a_repository_folder_will_do(published, release, tmp_path):
    shutil.copytree(published, tmp_path / "repository" / "data")
    folder = fetch(tmp_path / "new", source=tmp_path / "repository", release=release)
    assert contents(folder) == contents(published)


def test_files_come_from_the_release_s_address(published, release, tmp_path, server):
    there = Release(server.address, release.files)
    assert contents(fetch(tmp_path / "new", release=there)) == contents(published)
    assert len(server.served) == len(contents(published))
    fetch(tmp_path / "new", release=there)
    assert len(server.served) == len(contents(published)), "a complete folder asks for nothing"


def test_passing_failures_are_tried_again(published, release, tmp_path, server):
    server.faults[PICTURE] = [503, "truncated", 429]
    server.faults["mmpb_clean/sample.csv"] = ["truncated"]
    assert contents(fetch(tmp_path / "new", source=server.address, release=release)) == contents(published)
    assert server.served.count(PICTURE) == 4


def test_an_interrupted_fetch_continues(published, release, tmp_path, server):
    server.faults[PICTURE] = [404]
    with pytest.raises(FetchError, match=r"000005.png: 404 (.|\n)* of 48 files are here"):
        fetch(tmp_path / "new", source=server.address, release=release)
    partial_contents = contents(tmp_path / "new")
    assert PICTURE not in partial_contents
    assert partial_contents.items() <= contents(published).items(), "whatever has its name is complete"
    server.served.clear()
    assert contents(fetch(tmp_path / "new", source=server.address, release=release)) == contents(published)
    assert len(server.served) == len(contents(published)) - len(partial_contents)


def test_giving_up_says_so(release, tmp_path, server):
    server.faults["mmpb_clean/sample.csv"] = [503] * 9
    with pytest.raises(FetchError, match=r"sample.csv: 503 .*\(5 attempts\); is the internet reachable"):
        fetch(tmp_path / "new", source=server.address, release=release)
    server.shutdown()
    server.server_close()
    with pytest.raises(FetchError, match="Connection refused"):
        fetch(tmp_path / "new", source=server.address, release=release)


def test_damaged_local_files_are_fetched_anew(published, release, tmp_path):
    folder = fetch(tmp_path / "new", source=published, release=release)
    (folder / PICTURE).write_bytes((folder / PICTURE).read_bytes()[:40])
    (folder / "mmpb_clean/split.json").write_text("[]")
    (folder / "mmpb_clean/images/000006.png").unlink()
    fetch(folder, source=published, release=release)
    assert contents(folder) == contents(published)


def test_a_well_formed_picture_that_is_another_one_is_fetched_anew(published, release, tmp_path):
    folder = fetch(tmp_path / "new", source=published, release=release)
    Image.new("RGB", (8, 8), "white").save(folder / PICTURE)
    (folder / "mmpb_clean/images/000006.png").unlink()
    os.mkfifo(folder / "mmpb_clean/images/000006.png")
    fetch(folder, source=published, release=release)
    assert contents(folder) == contents(published)


def test_a_wrong_answer_is_asked_for_once_more(published, release, tmp_path, server):
    server.faults[PICTURE] = [contents(published)["mmpb_clean/images/000006.png"]]
    assert contents(fetch(tmp_path / "new", source=server.address, release=release)) == contents(published)
    assert server.served.count(PICTURE) == 2


def test_a_login_page_is_called_one(release, tmp_path, server):
    for path in (PICTURE, "mmpb_clean/split.json", "mmpb_clean/sample.csv"):
        server.faults[path] = [b"<!DOCTYPE html><p>Please log in</p>"] * 2
        with pytest.raises(FetchError, match=f"{path}: not the published file; .*it is a web page: is there a login"):
            fetch(tmp_path / path, source=server.address, release=release)
        assert not (tmp_path / path / path).exists()


def test_other_data_are_refused(published, release, tmp_path):
    other = Path(shutil.copytree(published, tmp_path / "other"))
    Image.new("RGB", (8, 8), "white").save(other / PICTURE)
    with pytest.raises(FetchError, match="000005.png: not the published file; expected sha256 [0-9a-f]{64}, found"):
        fetch(tmp_path / "new", source=other, release=release)
    (other / "mmpb_clean/sample.csv").write_text("index\n")
    with pytest.raises(FetchError, match="sample.csv: not the published file; expected sha256"):
        fetch(tmp_path / "newest", source=other, release=release)
    assert not (tmp_path / "newest").exists()


def test_sources_that_hold_no_data_are_refused(release, tmp_path):
    with pytest.raises(FetchError, match="expected a zip archive, or a folder that holds"):
        fetch(tmp_path / "new", source=tmp_path / "nowhere", release=release)
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(FetchError, match="expected an archive with mmpb_clean/sample.csv"):
        fetch(tmp_path / "new", source=tmp_path / "archive.zip", release=release)


def damaged(data: bytes, damage: str) -> bytes:
    """An archive of one packed file, with some of its bytes exchanged."""
    entry = data.rfind(b"PK\x01\x02")  # in the table of contents, which says again what stands before the file
    places = {"content": range(100, 120), "directory": range(entry, entry + 4), "encrypted": (6, entry + 8),
              "another packing": (8, entry + 10), "another version": (entry + 6,)}[damage]  # fmt: skip
    return bytes({"encrypted": byte | 1}.get(damage, 255) if k in places else byte for k, byte in enumerate(data))


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("damage", ["content", "directory", "encrypted", "another packing", "another version"])
def test_an_archive_that_cannot_be_read_is_named(release, tmp_path, damage, packing):
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("mmpb_clean/sample.csv", random.Random(0).randbytes(2000).hex())
    path.write_bytes(damaged(path.read_bytes(), damage))
    with pytest.raises(FetchError, match="archive.zip: (cannot read mmpb_clean/sample.csv|expected a whole zip)"):
        fetch(tmp_path / "new", source=path, release=release)


def test_a_pipe_is_no_source_and_is_not_waited_for(release, tmp_path):
    os.mkfifo(tmp_path / "archive.zip")
    with pytest.raises(FetchError, match="expected a zip archive, or a folder that holds"):
        fetch(tmp_path / "new", source=tmp_path / "archive.zip", release=release)


def test_the_command_reports_errors_without_a_traceback(tmp_path, capsys):
    assert main(["fetch", "mmpb-clean", str(tmp_path / "new"), "--source", str(tmp_path / "nowhere")]) == 1
    assert "error: " in capsys.readouterr().err


PUBLISHED_FOLDERS = {
    "mmpb_clean/images": "e11b1dcbca522ebb4fb95c72f0b92c00dad1bb664a7f855a67e17099f52cdec8",
    "mmpb_clean/injection/injection_image_1": "d4f21612cbaeb012ffb987bd38c1b5741bf60bb8615e82cc44067de482c8218f",
    "mmpb_clean/injection/injection_image_2": "39d860323cc3f02c1812e223b33c8a1d9f383a9ef7f27136a79fa7960981c600",
    "mmpb_clean/injection/injection_image_3": "cdfaacbd465dc9219acf95cf008ea89e080a2fba14fe25b3c9c009befd93fdc4",
    "mmpb_clean/injection/injection_image_4": "58c88d8d32c304ecb30f179da1ff1bc99a2c0415dfc2ee11a54275a22d47984e",
    "mmpb_clean/injection/injection_image_5": "f972b16681f7f2477dd96f47047536a0a5a6ee6bc6c1028862bd46e4a42b20f6",
}
"""sha256 of each picture folder's lines in sha256sum's form, as it was noted before the pictures' own."""


def test_the_public_subset_is_pinned_picture_by_picture():
    found = module.PUBLIC_SUBSET.files
    assert module.COMMIT in module.PUBLIC_SUBSET.url and len(module.COMMIT) == 40
    assert len(found) == 1200 and all(len(digest) == 64 for digest in found.values())
    for folder, digest in PUBLISHED_FOLDERS.items():
        lines = [f"{found[path]}  {path}\n" for path in sorted(found) if path.startswith(f"{folder}/")]
        assert hashlib.sha256("".join(lines).encode()).hexdigest() == digest, folder


@pytest.mark.skipif(data_folder(None) is None, reason="PREFMOE_DATA does not point to the real rows")
def test_the_pinned_checksums_are_those_of_the_public_subset(capsys):
    folder = str(data_folder(None))
    assert main(["fetch", "mmpb-clean", folder, "--source", folder]) == 0
    assert "complete and verified" in capsys.readouterr().out
