"""Checkpoints: all that a run needs to go on, whole or not there, each file with its checksum.

A folder ``checkpoint-STEP`` has tensors in safetensors files, one for the model, one for the optimizer, ...,
the rest in ``state.json``, and ``SHA256SUMS``, which ``sha256sum -c`` reads too. It is written under a hidden
name, flushed to the disk, then renamed: what has the name is whole, unless the disk changes it later, which
the checksums show.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import Tensor

from hybridfast.training.sharding import fill

__all__ = ["Checkpoints", "Damaged", "State", "Weights", "read", "write"]

State = dict[str, Any]
STATE, SUMS = "state.json", "SHA256SUMS"
NAME = re.compile(r"checkpoint-(\d+)")
BLOCK = 1 << 24  # bytes written and summed at a time
DTYPES = {  # as safetensors names them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Damaged(ValueError):
    """A checkpoint is not what was written; the message names the file."""


class Checkpoints:
    """The checkpoints of one run, in its folder.

    Writing goes on in a thread while training does, where the memory holds a copy of the state. What cannot
    be written is a warning, and the last good checkpoint stays; so do those that a kept one names as best.

    Args:
        folder: of the run; None: nothing can be saved.
        limit: how many are kept, the newest; None: all.
        logs: files flushed to the disk before a checkpoint that counts on them.
    """

    def __init__(self, folder: Path | None, limit: int | None = None, logs: Iterable[Path] = ()) -> None:
        self.folder, self.limit, self.logs = folder, limit, [*logs]
        self.writing: _Writing | None = None
        self.copies: dict[tuple[str, ...], Tensor] = {}  # kept: fresh memory costs more than the copying

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, KeyboardInterrupt):
            self.wait()

    def save(self, step: int, state: State) -> None:
        """Begin to write a checkpoint; the state may change as soon as this returns."""
        if self.folder is None:
            raise ValueError("a run without a folder has no checkpoints")
        self.wait()
        tensors = dict(_tensors(state))
        size = sum(tensor.nbytes for tensor in tensors.values())
        copied = bool(self.copies) or 2 * size < psutil.virtual_memory().available
        if copied:
            self.copies = {path: _copy(tensor, self.copies.get(path)) for path, tensor in tensors.items()}
            state = _with_tensors(state, self.copies)
        self.writing = _Writing(self, step, state)
        self.writing.start()
        if not copied:
            self.wait()

    def wait(self) -> bool:
        """Until it is written. Whether it could be: if not, a warning says so."""
        if self.writing is None:
            return True
        writing, self.writing = self.writing, None
        writing.join()
        if writing.error is None:
            return True
        if not isinstance(writing.error, OSError):
            raise writing.error
        last = next(iter(self.steps()), None)
        left = "there is none before it" if last is None else f"the last good one is checkpoint-{last}"
        warnings.warn(
            f"{self.folder}: checkpoint-{writing.step} could not be written ({writing.error}); {left}",
            stacklevel=2,
        )
        return False

    def look(self) -> None:
        """Say at once, and not at the next one, if one could not be written."""
        if self.writing is not None and not self.writing.is_alive():
            self.wait()

    def steps(self) -> list[int]:
        """Of all checkpoints, the newest first."""
        names = [] if self.folder is None else os.listdir(self.folder)
        return sorted((int(found[1]) for name in names if (found := NAME.fullmatch(name))), reverse=True)

    def newest(self) -> State | None:
        """The state of the newest checkpoint that is whole; each that is not is a warning."""
        assert self.folder is not None
        for step in self.steps():
            try:
                return read(self.folder / f"checkpoint-{step}")
            except Damaged as error:
                warnings.warn(f"{error}; the checkpoint before it is used, if any", stacklevel=2)
        return None

    def clean(self) -> None:
        """Remove what an interrupted process has left half written or half removed."""
        assert self.folder is not None
        for path in self.folder.glob(".checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)

    def remove_all(self) -> None:
        assert self.folder is not None
        for step in self.steps():
            _remove(self.folder / f"checkpoint-{step}")

    def rotate(self) -> None:
        """Remove what is beyond the limit."""
        if self.limit is None:
            return
        kept = self.steps()[: self.limit]
        assert self.folder is not None
        named = {_best_step(self.folder / f"checkpoint-{step}") for step in kept}
        for step in self.steps()[self.limit :]:
            if step not in named:
                _remove(self.folder / f"checkpoint-{step}")


class _Writing(threading.Thread):
    """A checkpoint on its way to the disk; a daemon, so that a process may leave at once."""

    def __init__(self, checkpoints: Checkpoints, step: int, state: State) -> None:
        super().__init__(name=f"checkpoint-{step}", daemon=True)
        self.checkpoints, self.step, self.state = checkpoints, step, state
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for log in self.checkpoints.logs:
                _flush(log)
            assert self.checkpoints.folder is not None
            write(self.checkpoints.folder / f"checkpoint-{self.step}", self.state)
            self.checkpoints.rotate()
        except Exception as error:
            self.error = error


class Weights:
    """What training changes of a model: weights that are not frozen, and buffers."""

    def __init__(self, model: torch.nn.Module) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
        self.tensors = {
            name: tensor.detach()
            for name, tensor in (trained | buffers).items()
            if isinstance(tensor, Tensor)
        }

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """ValueError: the model has other weights than those."""
        for name in sorted(self.tensors.keys() | state.keys()):
            here, there = self.tensors.get(name), state.get(name)
            if here is None or there is None or here.shape != there.shape:
                raise ValueError(
                    f"the model's weight {name} has shape {None if here is None else tuple(here.shape)}, "
                    f"the checkpoint's {None if there is None else tuple(there.shape)}"
                )
            fill(here, there)


def write(folder: Path, state: State) -> None:
    """A state, of dicts, lists, numbers, texts and tensors, as a checkpoint.

    Args:
        folder: takes its name when all of it is on the disk; replaced if it is there.

    Raises:
        OSError: the disk is full, or whatever else it says; nothing is left.
    """
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        sums = {}
        tensors: dict[str, dict[str, Tensor]] = {}
        for path, tensor in _tensors(state):
            tensors.setdefault(f"{path[0]}.safetensors", {})[".".join(path)] = tensor
        for name, those in tensors.items():
            sums[name] = _write_tensors(unfinished / name, those)
        text = json.dumps(_plain(state), indent=1, ensure_ascii=False)
        sums[STATE] = _write_file(unfinished / STATE, [text.encode()])
        lines = "".join(_sum_line(name, digest) for name, digest in sums.items())
        _write_file(unfinished / SUMS, [lines.encode()])
        unfinished.chmod(0o755)
        _flush(unfinished)
        if folder.exists():
            _remove(folder)
        os.replace(unfinished, folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def read(folder: Path) -> State:
    """What :func:`write` was given, with tensors on the CPU.

    Raises:
        Damaged: a file is missing, or is not what was written.
        FileNotFoundError: there is no such folder.
    """
    from safetensors import safe_open

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such checkpoint")
    tensors: dict[str, Tensor] = {}
    for name in _check(folder):
        if name == STATE:
            continue
        with safe_open(folder / name, "pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return _full(json.loads((folder / STATE).read_text(encoding="utf-8")), tensors)


def _check(folder: Path) -> list[str]:
    """The names of its files; Damaged where one has not its checksum."""
    names = []
    try:
        for line in (folder / SUMS).read_text(encoding="ascii").splitlines(keepends=True):
            names.append(line[66:].rstrip("\n"))  # behind 64 digits and two blanks
            if line != _sum_line(names[-1], _sum_of(folder / names[-1])):
                raise Damaged(f"{folder} is damaged: {names[-1]} has not the checksum that {SUMS} tells")
    except Damaged:
        raise
    except (OSError, ValueError) as error:  # ValueError: neither text nor a file's name
        what = f"{names[-1]!r}, which {SUMS} tells of: {error}" if names else error
        raise Damaged(f"{folder} is damaged: {what}") from error
    if STATE not in names:
        raise Damaged(f"{folder} is damaged: {SUMS} is cut off")
    return names


def _sum_line(name: str, digest: str) -> str:
    return f"{digest}  {name}\n"


def _sum_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _write_file(path: Path, parts: Iterable[Any]) -> str:
    """Bytes to the disk; their checksum. Both let other threads run."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in parts:
            view = memoryview(part).cast("B")
            for at in range(0, len(view), BLOCK):
                digest.update(view[at : at + BLOCK])
                file.write(view[at : at + BLOCK])
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """A safetensors file (the length of a JSON header, the header, the bytes of all tensors), as a stream.

    The library wants all of it in memory, and another look for the checksum.
    """
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} is of {tensor.dtype}, which safetensors cannot hold")
        span = [at, at := at + tensor.nbytes]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8

    def parts() -> Iterator[Any]:
        yield struct.pack("<Q", len(text))
        yield text
        for tensor in tensors.values():
            if tensor.numel():
                yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

    return _write_file(path, parts())


def _remove(folder: Path) -> None:
    """Renamed first: half of a checkpoint must not look like one."""
    away = folder.with_name(f".{folder.name}-removed")
    shutil.rmtree(away, ignore_errors=True)
    os.replace(folder, away)
    shutil.rmtree(away, ignore_errors=True)


def _flush(path: Path) -> None:
    """A file's or a folder's last changes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _best_step(folder: Path) -> int | None:
    """The checkpoint that a checkpoint names as best."""
    try:
        best = json.loads((folder / STATE).read_text(encoding="utf-8"))["best"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if best is None else int(best)


# --- states as trees ---------------------------------------------------------------------------------------


def _tensors(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, (*path, str(key)))
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _tensors(value, (*path, str(index)))


def _with_tensors(tree: Any, tensors: Mapping[tuple[str, ...], Tensor], path: tuple[str, ...] = ()) -> Any:
    if isinstance(tree, Tensor):
        return tensors[path]
    if isinstance(tree, Mapping):
        return {key: _with_tensors(value, tensors, (*path, str(key))) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_with_tensors(value, tensors, (*path, str(index))) for index, value in enumerate(tree)]
    return tree


def _copy(tensor: Tensor, memory: Tensor | None) -> Tensor:
    tensor = tensor.detach()
    if memory is None or memory.shape != tensor.shape or memory.dtype != tensor.dtype:
        memory = torch.empty(tensor.shape, dtype=tensor.dtype)
    return memory.copy_(tensor)


def _plain(tree: Any, path: tuple[str, ...] = ()) -> Any:
    """For JSON: a tensor as its name in the safetensors files, a mapping with other keys as its items."""
    if isinstance(tree, Tensor):
        return {"$tensor": ".".join(path)}
    if isinstance(tree, Mapping):
        entries = [(key, _plain(value, (*path, str(key)))) for key, value in tree.items()]
        return dict(entries) if all(isinstance(key, str) for key in tree) else {"$items": entries}
    if isinstance(tree, (list, tuple)):
        return [_plain(value, (*path, str(index))) for index, value in enumerate(tree)]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"{'.'.join(path)} is a {type(tree).__name__}, which a checkpoint cannot hold")


def _full(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_full(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {"$tensor"}:
        return tensors[tree["$tensor"]]
    if tree.keys() == {"$items"}:
        return {key: _full(value, tensors) for key, value in tree["$items"]}
    return {key: _full(value, tensors) for key, value in tree.items()}
