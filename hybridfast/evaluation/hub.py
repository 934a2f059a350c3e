"""Files of published data sets, fetched once: by the libraries of the hub, or from an address."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["files_at_addresses", "folder_of", "rows_of"]


def files_at_addresses(name: str, addresses: Mapping[str, str]) -> dict[str, Path]:
    """The files at these addresses, by the same keys; kept in ``$HYBRIDFAST_CACHE`` or ~/.cache/hybridfast.

    Raises OSError where they cannot be had.
    """
    with _reported(name):
        return {key: _fetched(address) for key, address in addresses.items()}


def _fetched(address: str) -> Path:
    # By the standard library: datasets' own downloads need packages that it does not bring.
    from urllib.request import urlopen

    cache = Path(os.environ.get("HYBRIDFAST_CACHE") or Path.home() / ".cache" / "hybridfast")
    kept = cache / "downloads" / hashlib.sha256(address.encode()).hexdigest()[:16] / address.split("/")[-1]
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f".{kept.name}.{os.getpid()}")
        try:
            with urlopen(address, timeout=60) as source, open(partial, "wb") as file:
                shutil.copyfileobj(source, file)
            os.replace(partial, kept)
        finally:
            partial.unlink(missing_ok=True)
    return kept


def folder_of(name: str, patterns: list[str]) -> Path:
    """A folder with the files of a data set on the hub that match. Raises OSError where it cannot be had."""
    from huggingface_hub import snapshot_download

    with _reported(name):
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))


def rows_of(name: str, config: str | None, split: str) -> Dataset:
    """The rows of a data set on the hub. Raises OSError where it cannot be had."""
    from datasets import load_dataset

    with _reported(name):
        return load_dataset(name, config, split=split)


@contextmanager
def _reported(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whatever library carries the request
        message = str(error).strip().split("\n")[0]
        raise OSError(
            f"{name} could not be downloaded ({type(error).__name__}: {message}); where you have its files, "
            "give their folder as data_dir"
        ) from error
