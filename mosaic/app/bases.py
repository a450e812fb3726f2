"""The base model of a config: a folder, or a model of the Hugging Face hub by its name.

`org/name@revision` is looked up once, when a run is made, and pinned to the commit that the
revision stood for. From then on the files in the hub's cache are a folder like any other; what
identifies a base is the digest of its content, wherever it came from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from mosaic.app.config import RunConfig
from mosaic.core.errors import UsageError

HUB = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?"
)
MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
# What a base is made of; pickles and other formats stay at the hub.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
UNWANTED = ["original/*", "onnx/*", "consolidated*", "*/*.safetensors"]


def is_hub_name(text: str, folder: Path) -> bool:
    """Whether a base's name is the hub's: with a revision, and no path that exists from `folder`.

    Without a revision `models/base` is a path, even if nothing is there yet.

    >>> is_hub_name("org/name@main", Path("/")), is_hub_name("/models/base", Path("/"))
    (True, False)
    """
    match = HUB.fullmatch(text)
    return bool(match and match["revision"]) and not (folder / text).exists()


def base_folder(named: str) -> Path:
    """The local folder of a base: `named` itself, or where the hub's cache has the model.

    Raises UsageError if the hub's model can be had neither from the cache nor from the hub.
    """
    if not is_hub_name(named, Path.cwd()):
        return Path(named)
    return _snapshot(named)


def pinned(config: RunConfig, say: Callable[[str], None] = lambda text: None) -> RunConfig:
    """The same config with a base of the hub pinned to a commit: `org/name@<40 hex digits>`.

    A folder stays as it is. Raises UsageError as `base_folder` does.
    """
    named = config.base_model
    if not is_hub_name(named, Path.cwd()):
        return config
    name, revision = hub_name(named)
    if not COMMIT.fullmatch(revision):
        say(f"looking up {named} at the hub")
    commit = _snapshot(named).name
    return config.model_copy(update={"base_model": f"{name}@{commit}"})


def hub_name(named: str) -> tuple[str, str]:
    """Name and revision of a model of the hub.

    >>> hub_name("org/name@v1"), hub_name("org/name")
    (('org/name', 'v1'), ('org/name', 'main'))
    """
    match = HUB.fullmatch(named)
    if match is None:
        raise ValueError(f"{named} is not of the form org/name@revision")
    return match["name"], match["revision"] or MAIN


@lru_cache(maxsize=8)
def _snapshot(named: str) -> Path:
    """The folder of a hub model's files at a revision: its name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = hub_name(named)
    where = f"base_model: {named}"
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
        )
    except GatedRepoError:
        raise UsageError(
            f"{where}: access is gated; accept its licence on the hub's page and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"{where}: neither a folder here nor a model at the hub (a private one needs "
            "HF_TOKEN); give the folder's path or org/name@revision"
        ) from None
    except RevisionNotFoundError:
        raise UsageError(
            f"{where}: {name} has no revision {revision!r}; give a branch, a tag or a commit"
        ) from None
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise UsageError(f"{where}: {_not_to_be_had(name, revision, error)}") from None
    return Path(folder)


def _not_to_be_had(name: str, revision: str, error: Exception) -> str:
    """Why a model is in neither the cache nor within reach, and what to do."""
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import IncompleteSnapshotError

    if isinstance(error, IncompleteSnapshotError):
        state = "the hub's cache holds only a part of it"
    else:
        state = "the folder does not exist, and the hub's cache does not hold it"
    if is_offline_mode():
        reach = "HF_HUB_OFFLINE is set, so the hub was not asked"
    else:
        reach = "the hub could not be reached: " + str(error).strip().splitlines()[0]
    return (
        f"{state}; {reach}. Fetch it where there is a network with `hf download {name} --revision "
        f"{revision}`, or give the folder of a model"
    )
