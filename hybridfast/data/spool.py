"""Tables and arrays that are in memory while they are small, and else in files that are mapped."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

__all__ = ["MEMORY", "Store", "cache_folder", "write_whole"]

MEMORY = 512 << 20  # bytes


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where caches live: as said, or ``$HYBRIDFAST_CACHE``, or ``~/.cache/hybridfast``."""
    return Path(cache_dir or os.environ.get("HYBRIDFAST_CACHE") or Path.home() / ".cache" / "hybridfast")


@dataclass
class Store:
    """Holds tables while there is room for them, in bytes, and writes what is more to files that it maps.

    A file without a name of its own is gone with the process, also after a kill.
    """

    cache: Path
    room: int = MEMORY
    mapped: int = 0  # bytes in files

    def table(
        self, batches: Iterable[pa.RecordBatch], schema: pa.Schema, name: str | None = None
    ) -> pa.Table:
        """The batches as one table; `name` is that of its file, which is only mapped if it is there."""
        path = self.cache / f"{name}.arrow" if name else None
        if path and path.is_file():
            return self._map(path)
        held: list[pa.RecordBatch] = []
        size, more = 0, iter(batches)
        for batch in more:
            held.append(batch)
            if (size := size + batch.nbytes) > self.room:
                break
        else:
            self.room -= size
            return pa.Table.from_batches(held, schema)
        self.cache.mkdir(parents=True, exist_ok=True)
        if path is None:
            with tempfile.NamedTemporaryFile(dir=self.cache, prefix=".rows-", suffix=".arrow") as file:
                _write(Path(file.name), held, more, schema)
                return self._map(Path(file.name))
        part = path.with_name(f".{path.name}.part")
        with open(part, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits for another process that writes the same
            if not path.is_file():
                _write(part, held, more, schema)
                os.replace(part, path)
        part.unlink(missing_ok=True)
        return self._map(path)

    def _map(self, path: Path) -> pa.Table:
        self.mapped += path.stat().st_size
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: damaged ({error}); delete it to read the data again") from None

    def empty(self, shape: Any, dtype: DTypeLike) -> NDArray[Any]:
        """An array to be filled; on disk where the tables are."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not self.mapped or not size:
            return np.empty(shape, dtype)
        if size > (free := shutil.disk_usage(self.cache).free):
            raise OSError(
                errno.ENOSPC, f"an array of {size:,} bytes does not fit into {free:,}", str(self.cache)
            )
        with tempfile.TemporaryFile(dir=self.cache) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full says so here, and kills nobody
            return np.memmap(file, dtype, "r+", shape=shape)


def _write(path: Path, held: list[pa.RecordBatch], more: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.truncate(0)
        with pa.ipc.new_file(file, schema) as writer:
            held.reverse()
            while held:  # its memory is freed as it is written
                writer.write_batch(held.pop())
            for batch in more:
                writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """A file that holds all of it or what it held before, whatever happens meanwhile."""
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    with open(unfinished, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
