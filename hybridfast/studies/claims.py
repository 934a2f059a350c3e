"""Who works in a folder, where several processes share them: claims that need no locks.

A claim is a file ``.claim-N`` made by O_CREAT | O_EXCL, which one process alone can do, on shared file
systems too. Its holder touches it again and again. When the holder has ended, as its own machine can tell, or
has not touched it for long, whoever makes ``.claim-(N + 1)`` takes over: again one alone can. No number is
used twice while a folder is claimed, so nobody can take over from the wrong one.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import uuid
from pathlib import Path
from types import TracebackType

import psutil

__all__ = ["Claim"]

NAME = re.compile(r"\.claim-(\d+)")
BEAT, SILENCE = 10.0, 300.0  # seconds between touches; after which a claim of another machine is over


class Claim:
    """A folder that is this process's while the block lasts; see :meth:`take`."""

    def __init__(self, folder: Path, number: int, text: str) -> None:
        self.folder, self.path, self.text = folder, folder / f".claim-{number}", text
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"claim {folder}", daemon=True)

    @classmethod
    def take(cls, folder: Path) -> Claim | None:
        """The claim of a folder, which is made if it is missing; None: another process has it."""
        folder.mkdir(parents=True, exist_ok=True)
        number = _newest(folder)
        if number and _is_held(folder / f".claim-{number}"):
            return None
        me = {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}
        claim = cls(folder, number + 1, json.dumps(me | {"id": uuid.uuid4().hex}))
        try:
            file = os.open(claim.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        with os.fdopen(file, "w") as stream:
            stream.write(claim.text)
        return claim

    @staticmethod
    def holder(folder: Path) -> str | None:
        """Who works there, in words; None: nobody."""
        number = _newest(folder)
        if not number or not _is_held(folder / f".claim-{number}"):
            return None
        found = _read(folder / f".claim-{number}")
        return f"process {found['pid']} on {found['host']}" if found else "another process"

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._is_mine():
            for path in sorted(self.folder.glob(".claim-*"), key=_number):  # the own one is the last
                path.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        try:
            return self.path.read_text() == self.text and _newest(self.folder) == _number(self.path)
        except OSError:
            return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            if not self._is_mine() and not self._ended.is_set():
                # Both would write the same files. What is there is whole whenever a process ends.
                print(
                    f"{self.folder} has been taken over after a long silence: this process ends",
                    file=sys.stderr,
                )
                sys.stderr.flush()
                os._exit(3)
            try:
                os.utime(self.path)
            except OSError:  # a file system that is away for a moment
                continue


def _number(path: Path) -> int:
    found = NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


def _newest(folder: Path) -> int:
    """The number of the newest claim; 0: there is none."""
    try:
        return max(map(_number, folder.iterdir()), default=0)
    except FileNotFoundError:
        return 0


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # gone, or not yet written
        return {}
    return found if isinstance(found, dict) else {}


def _is_held(path: Path) -> bool:
    found = _read(path)
    if found.get("host") == socket.gethostname():
        return _began(int(str(found["pid"]))) == found["began"]  # a stopped process is there, however silent
    try:
        return _now(path.parent) - path.stat().st_mtime < SILENCE
    except FileNotFoundError:
        return False


def _began(pid: int) -> float | None:
    """When a process of this machine began, which tells it from a later one of its number; None: it ended."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _now(folder: Path) -> float:
    """The time of the file system, which machines need not agree with."""
    probe = folder / f".time-{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
