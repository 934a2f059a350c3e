"""SIGTERM and Ctrl-C as a wish to stop, heard when a step is done."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupted", "Interrupts"]


class Interrupted(Exception):
    """A run was told to stop; ``saved`` says whether a checkpoint holds all it needs to go on."""

    def __init__(self, step: int, max_steps: int, saved: bool) -> None:
        super().__init__(f"interrupted after step {step:,} of {max_steps:,}")
        self.step, self.saved = step, saved


class Interrupts:
    """While it is entered, the first signal is noted in ``asked``; a second Ctrl-C interrupts at once.

    In another thread than the main one, which gets all signals, and with ``heard`` False, it does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, heard: bool = True) -> None:
        self.heard = heard and threading.current_thread() is threading.main_thread()
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if self.heard:
            self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        # Not print: the signal may have come in the midst of one.
        os.write(2, b"\nstopping when this step is done and saved; Ctrl-C again stops at once\n")
