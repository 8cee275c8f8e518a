"""The one door to the Hugging Face hub: pinned revisions, resumed downloads, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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

    Args:
        revision: a commit; None for the newest one.
        otherwise: what else one can do when the hub cannot be reached, as the end of a sentence.

    Raises:
        HubError: if the repository is gated, unknown or lacks the revision, the download broke off, or the hub cannot
            be reached.
    """
    where = f"{repo_type} {repo_id} at revision {revision or 'main'}"
    page = f"https://huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    hint = f"; {otherwise}" if otherwise else ""
    again = f"run the same command again: finished files are kept and unfinished ones go on{hint}"
    try:
        return Path(
            snapshot_download(
                repo_id,
                repo_type=repo_type,
                revision=revision,
                allow_patterns=None if allow_patterns is None else list(allow_patterns),
                local_dir=local_dir,
            )
        )
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
