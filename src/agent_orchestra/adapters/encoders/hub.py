"""Encoders of the Hugging Face hub: fetched once, by a command, and then a folder like any other.

Nothing but :func:`install` reaches the network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent_orchestra.adapters.encoders.files import SMALL_FILES, TOKENIZER, beside, preferred
from agent_orchestra.errors import ConfigurationError, MissingExtra, Unavailable

__all__ = ["default_folder", "folder_of", "install", "is_hub_name"]

#: Owner and model, and perhaps a branch, a tag or a commit. No part begins with a dot, so that none leads elsewhere.
_NAME: Final = re.compile(
    r"(?P<repository>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>\w[\w.-]{0,95}))?", flags=re.ASCII
)
_EXAMPLE: Final = "sentence-transformers/all-MiniLM-L6-v2"
_HUB: Final = "https://huggingface.co"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where one model is on a hub. ``file``: the one that somebody wants, if not the one that fits this machine."""

    name: str
    repository: str
    revision: str | None
    file: str | None
    hub: str


def default_folder() -> Path:
    """Where encoders are kept that were fetched: below the user's cache (XDG Base Directory Specification)."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # What is not absolute is to be ignored, says the specification.
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "agent-orchestra" / "encoders"


def is_hub_name(text: str) -> bool:
    """Whether a text has the form of a hub's name, such as ``owner/model`` or ``owner/model@revision``."""
    return _NAME.fullmatch(text) is not None


def folder_of(name: str, into: Path | None = None) -> Path:
    """Where the encoder of that name is, once it is installed. ``into``: what is not the default folder."""
    return (into or default_folder()) / name


def install(name: str, into: Path | None = None, *, file: str | None = None, hub: str | None = None) -> Path:
    """Fetches an encoder, has it encode, and gives its folder. One that is there and encodes is not fetched again.

    What is fetched is the tokenizer, what the model says of itself, and one ONNX file: ``file`` (its path in the
    repository), or the one that this machine runs best. Machines that share a database should have the same file, since
    vectors of different files are never mixed. The folder appears as a whole or not at all; of two at once, one waits.

    ``hub``: its address, else that of ``HF_ENDPOINT``, else the public one. A token is found as ``huggingface_hub``
    finds it, in ``HF_TOKEN`` or where ``hf auth login`` has left it. Blocks for as long as it takes.

    Raises :class:`ConfigurationError` with what to change, :class:`MissingExtra`, and :class:`Unavailable` where the
    hub cannot be reached.
    """
    named = _NAME.fullmatch(name)
    if named is None:
        raise ConfigurationError(f"'{name[:200]}' is no name of a model; write it as in '{_EXAMPLE}'")
    # The library reads these when it is first imported, and there is no other way to tell it. Plain HTTP is what
    # proxies, mirrors and firewalls let through.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        import huggingface_hub
        from filelock import FileLock
    except ImportError:
        raise MissingExtra("to fetch an encoder needs an extra: pip install 'agent-orchestra[encoder]'") from None
    source = _Source(
        name=name,
        repository=named["repository"],
        revision=named["revision"],
        file=file,
        hub=(hub or os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/"),
    )
    folder = folder_of(name, into)
    partial = folder.with_name(f".{folder.name}.partial")
    with _translated(source, folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if _encodes(folder, file):
                return folder
            # What is left of an attempt that was killed.
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _fetch(huggingface_hub.HfApi(endpoint=source.hub, library_name="agent-orchestra"), source, partial)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _encodes(folder: Path, file: str | None) -> bool:
    """Whether there is an encoder, of that file where one is named, that works."""
    from agent_orchestra.adapters.encoders.folder import describe

    if not folder.is_dir():
        return False
    try:
        return describe(folder).file == file or file is None
    except MissingExtra:
        raise
    except ConfigurationError:
        return False


def _fetch(api: Any, source: _Source, partial: Path) -> None:
    """Brings what is wanted, checks that it is what the hub has, and that it encodes."""
    from agent_orchestra.adapters.encoders.folder import describe

    told = api.model_info(source.repository, revision=source.revision, files_metadata=True)
    there = {sibling.rfilename: sibling for sibling in told.siblings or ()}
    for name in _wanted(source, there):
        path = Path(api.hf_hub_download(source.repository, name, revision=told.sha, local_dir=partial))
        kept = there[name].lfs
        with path.open("rb") as file:
            if kept is not None and hashlib.file_digest(file, "sha256").hexdigest() != kept.sha256:
                raise Unavailable(f"'{name}' of '{source.name}' did not come as the hub {source.hub} has it; try again")
    # The library's own notes.
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    try:
        describe(partial)
    except MissingExtra:
        raise
    except ConfigurationError as error:
        raise ConfigurationError(error.detail.replace(str(partial), source.name)) from None


def _wanted(source: _Source, names: Collection[str]) -> list[str]:
    """The files to fetch, of all that are there."""
    model = source.file or preferred(names)
    if model is None or model not in names:
        files = ", ".join(sorted(name for name in names if name.endswith(".onnx"))) or "none"
        what = "such file" if source.file else "ONNX file for a CPU"
        raise ConfigurationError(
            f"'{source.name}' has no {what}; its ONNX files: {files}. A model that has: {_EXAMPLE}"
        )
    if TOKENIZER not in names:
        raise ConfigurationError(f"'{source.name}' has no {TOKENIZER}. A model that has: {_EXAMPLE}")
    return [TOKENIZER, *(name for name in SMALL_FILES if name in names), *beside(model, names), model]


@contextmanager
def _translated(source: _Source, folder: Path) -> Generator[None]:
    """The library's errors in our words. Theirs may quote addresses that are signed."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        # The library looks for a copy when the hub fails, and says first of all that there is none.
        raise _refusal(error.__cause__ if isinstance(error.__cause__, OSError) else error, source) from None
    except errors.HfHubHTTPError as error:
        raise _refusal(error, source) from None
    except (httpx2.HTTPError, errors.FileMetadataError) as error:
        raise _unreachable(error, source) from None
    except errors.OfflineModeIsEnabled:
        raise ConfigurationError(f"'{source.name}' cannot be fetched while HF_HUB_OFFLINE is set") from None
    except OSError as error:
        if error.errno is None:
            # So the library says that a file has another length than it should.
            raise _unreachable(error, source) from None
        raise ConfigurationError(f"'{source.name}' cannot be written to '{folder.parent}': {error.strerror}") from None


def _refusal(error: OSError, source: _Source) -> ConfigurationError | Unavailable:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"{source.hub}/{source.repository}"
        return ConfigurationError(f"the terms of '{source.name}' are to be accepted at {page}; do so, and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigurationError(
            f"{source.hub} has no model '{source.repository}', or it is private; check the name, or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigurationError(f"'{source.repository}' has no revision '{source.revision}'")
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status in (401, 403):
        return ConfigurationError(f"{source.hub} refuses '{source.name}' to this token ({status}); check HF_TOKEN")
    if status is not None:
        return Unavailable(f"{source.hub} failed on '{source.name}' ({status}); try again later")
    return _unreachable(error, source)


def _unreachable(error: Exception, source: _Source) -> Unavailable:
    return Unavailable(
        f"'{source.name}' could not be fetched from {source.hub} ({type(error).__name__}); check the network, or copy "
        "the folder from a machine that has it"
    )
