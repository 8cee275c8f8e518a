"""The one door to the Hugging Face hub: pinned revisions, resumed downloads, the published bytes, and errors that say
what to do."""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash

from prefmoe.system.file_digests import state_of

log = logging.getLogger(__name__)

NOTES = Path(".cache") / "huggingface" / "download"
"""Where a download into a folder of one's own notes what it got, from that folder."""


class HubError(RuntimeError):
    """A repository that could not be downloaded; the message says why and what helps."""


def download(
    repo_id: str,
    *,
    revision: str | None,
    repo_type: str = "model",
    allow_patterns: Sequence[str] | None = None,
    local_dir: str | Path | None = None,
    otherwise: str = "",
) -> Path:
    """The folder of a repository's files; what was downloaded before, even in part, is not downloaded again.

    Every file is compared with its published digest; one that differs is removed and downloaded once more.

    Args:
        revision: a commit; None for the newest one.
        otherwise: what else one can do when the hub cannot be reached, as the end of a sentence.

    Raises HubError if the repository is gated, unknown or lacks the revision, the download broke off, the hub cannot be
    reached or something else answers in its place, no file is there, or one is not the published one.
    """
    options = {"repo_type": repo_type, "revision": revision, "local_dir": local_dir}
    options["allow_patterns"] = None if allow_patterns is None else list(allow_patterns)
    folder = _snapshot(repo_id, options, otherwise)
    if wrong := damaged(folder):
        for path in wrong:
            log.warning("%s: not the published file, it is downloaded again", path)
            if path.is_symlink() and (content := path.resolve()).parent.name == "blobs":
                content.unlink(missing_ok=True)
            path.unlink()
            _note(folder, path).unlink(missing_ok=True)
        folder = _snapshot(repo_id, options, otherwise)
        again = [path for path in wrong if not path.is_file()] + damaged(folder)
        if again:
            names = ", ".join(path.relative_to(folder).as_posix() for path in again)
            raise HubError(f"{repo_type} {repo_id}: not the published file(s), twice in a row: {names}")
    if not any(_files(folder)):
        # huggingface_hub keeps the list of files for good, also an empty one that something else answered.
        trees = folder / NOTES.parent / "trees" if local_dir else folder.parent.parent / "trees"
        for listing in trees.glob("*.json" if local_dir else f"{folder.name}.json"):
            listing.unlink()
        asked = f", {', '.join(allow_patterns)}" if allow_patterns else ""
        text = f"{repo_type} {repo_id} at revision {revision or 'main'} has none of the files asked for{asked}"
        raise HubError(f"{text}; is there a login page or a proxy between?")
    return folder


def damaged(folder: Path) -> list[Path]:
    """The files of a downloaded folder whose content is not the published one.

    A cache names each file by its digest, a download into a folder notes it: sha256 for large files, git's for others.
    What is neither named nor noted so is taken at its word.
    """
    return [path for path, digest in published(folder).items() if not is_published(path, digest)]


def is_published(path: Path, digest: str) -> bool:
    """Whether a file's content has the digest that `published` names."""
    return _digest_of(str(path), len(digest), *state_of(path)) == digest


def published(folder: Path) -> dict[Path, str]:
    """The published digests of a downloaded folder's files, of those that have one; see `damaged`."""
    found = {}
    for path in _files(folder):
        note = _note(folder, path)
        if path.is_symlink():
            digest = path.readlink().name
        else:
            lines = note.read_text(encoding="utf-8").splitlines() if note.is_file() else []
            digest = lines[1].strip() if len(lines) > 1 else ""
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
            found[path] = digest
    return found


def _files(folder: Path) -> Iterator[Path]:
    """A downloaded folder's files without the notes about them."""
    for path in sorted(folder.rglob("*")):
        if NOTES.parts[0] not in path.relative_to(folder).parts and path.is_file():
            yield path


def _note(folder: Path, path: Path) -> Path:
    return folder / NOTES / f"{path.relative_to(folder).as_posix()}.metadata"


@lru_cache(maxsize=4096)
def _digest_of(path: str, digits: int, size: int, *changed: int) -> str:
    """A file's digest, computed once a process as long as the file stays: sha256, or git's with its 40 digits."""
    with open(path, "rb") as file:
        if digits == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return git_hash(file.read())


def _snapshot(repo_id: str, options: dict[str, Any], otherwise: str) -> Path:
    """What huggingface_hub downloads, its errors put into words."""
    repo_type, revision = options["repo_type"], options["revision"]
    where = f"{repo_type} {repo_id} at revision {revision or 'main'}"
    page = f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    hint = f"; {otherwise}" if otherwise else ""
    again = f"run the same command again: finished files are kept and unfinished ones go on{hint}"
    try:
        return Path(snapshot_download(repo_id, **options))
    except GatedRepoError as error:
        raise HubError(f"{where} is gated: accept its terms on {page}, then `hf auth login`{hint}") from error
    except RepositoryNotFoundError as error:
        text = f"{where} does not exist, or is private: check the name, or `hf auth login`{hint}"
        raise HubError(text) from error
    except RevisionNotFoundError as error:
        text = f"{where}: the repository has no such revision; correct the entry's revision{hint}"
        raise HubError(text) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        text = f"{where} is not in the local cache and the hub cannot be reached; {again}"
        raise HubError(text) from error
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a hub repository (owner/name): {error}") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise HubError(f"{where}: the download broke off ({reason}); {again}") from error
    except (ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        # What huggingface_hub 2.4 raises where the answer is no JSON (a web page), or JSON of another form.
        text = f"{where}: the answer is not the hub's ({type(error).__name__}: {error})"
        raise HubError(f"{text}; is there a login page or a proxy between?{hint}") from error
