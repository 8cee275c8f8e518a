"""Downloads from the hub, with a server of our own in its place: the published bytes, or a message."""

import hashlib
import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from prefmoe.system import hub

COMMIT = "0123456789abcdef" * 2 + "01234567"
FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 40, "data/notes.txt": b"notes"}
LARGE = ("model.safetensors",)


def git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest() if name in LARGE else git(FILES[name])


class Server(ThreadingHTTPServer):
    """The few answers of the hub that a download asks for; ``wrong`` maps a file to other bytes, and how often."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wrong: dict[str, list[bytes]] = {}
        self.everything: bytes | None = None
        self.served: list[str] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        headers = {"Content-Type": "application/json"}
        if server.everything is not None:
            body = server.everything
        elif path.startswith("/api/") and "/tree/" in path:
            entries = []
            for name, content in FILES.items():
                large = {"oid": etag(name), "size": len(content), "pointerSize": 130} if name in LARGE else None
                entry = {"type": "file", "path": name, "size": len(content), "oid": git(content)}
                entries.append(entry | ({"lfs": large} if large else {}))
            body = json.dumps(entries).encode()
        elif path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in FILES]
            body = json.dumps({"id": "some/thing", "sha": COMMIT, "siblings": siblings}).encode()
        else:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            body = FILES[name]
            if self.command == "GET":
                server.served.append(name)
                body = server.wrong[name].pop(0) if server.wrong.get(name) else body
            headers |= {"ETag": f'"{etag(name)}"', "X-Repo-Commit": COMMIT, "Content-Type": "application/octet-stream"}
        self.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))  # looks that often whether to end
    thread.start()
    address = f"http://127.0.0.1:{running.server_port}"
    options = {"endpoint": address, "cache_dir": tmp_path / "cache", "token": False}
    monkeypatch.setattr(hub, "snapshot_download", partial(huggingface_hub.snapshot_download, **options))
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture(params=["cache", "folder"])
def download(request, tmp_path):
    place = {} if request.param == "cache" else {"local_dir": tmp_path / "here"}
    return partial(hub.download, "some/thing", revision=COMMIT, **place)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_what_is_whole_is_downloaded_once(server, download):
    assert contents(download()) == FILES and hub.damaged(download()) == []
    assert sorted(server.served) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_right_size_and_wrong_bytes_is_downloaded_again(server, download, name):
    """On the way, and on the disk afterwards."""
    content = FILES[name]
    server.wrong[name] = [content[::-1]]
    folder = download()
    assert contents(folder) == FILES and server.served.count(name) == 2
    target = (folder / name).resolve()
    target.write_bytes(content[:-1] + b"x")
    assert [path.name for path in hub.damaged(folder)] == [Path(name).name]
    assert contents(download()) == FILES and server.served.count(name) == 3


def test_what_stays_wrong_is_refused_by_name(server, download):
    server.wrong["model.safetensors"] = [FILES["model.safetensors"][::-1]] * 4
    with pytest.raises(hub.HubError, match=r"not the published file\(s\), twice in a row: model.safetensors"):
        download()


@pytest.mark.parametrize("answer", [b"<html>Please log in</html>", b"null", b"[]", b"{}", b"[null]", b"7"])
@pytest.mark.parametrize("revision", [COMMIT, None])
def test_a_page_in_the_place_of_the_hub_is_said(server, tmp_path, answer, revision):
    server.everything = answer
    with pytest.raises(hub.HubError, match="some/thing .*(a login page or a proxy|the download broke off|local cache)"):
        hub.download("some/thing", revision=revision, local_dir=tmp_path / "here")
    assert not list(tmp_path.rglob("trees/*.json")), "what another one answered is not remembered"
