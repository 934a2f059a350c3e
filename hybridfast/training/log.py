"""What a run tells of itself: log.jsonl, trackers, the progress bar, and where its time went."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from hybridfast.data.sampler import MODES, TEXTS, Batch

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["TRACKERS", "Clock", "Log", "Tracker", "check_trackers"]

PHASES = ("data", "mining", "encoder", "loss", "backward", "optimizer", "evaluation", "saving")
TRACKERS = ("tensorboard", "wandb", "none")
Figures = dict[str, float]
Sums = defaultdict[str, float]


class Clock:
    """Seconds by phase, as the device spent them: on a GPU, between events of its stream."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = [("", self._now())]

    def lap(self, phase: str) -> None:
        """What has passed since the last lap was this phase."""
        self.marks.append((phase, self._now()))

    def read(self) -> Sums:
        """Seconds of every phase since it was last read."""
        if self.cuda:
            self.marks[-1][1].synchronize()
        seconds = Sums(float)
        for (_, begin), (phase, end) in pairwise(self.marks):
            seconds[phase] += begin.elapsed_time(end) / 1e3 if self.cuda else end - begin
        self.marks = [("", self.marks[-1][1])]
        return seconds

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Log:
    """Counts steps, and writes a line every so many of them.

    Its state is part of a checkpoint: what goes on from there writes the lines that were lost, and none
    twice.

    Args:
        folder: of ``log.jsonl``; None: nothing is written.
        every: steps of a line.
        max_steps: of the run; its last step has a line.
        epoch: batches of one.
        constants: figures that every line has; the learning rate is one, until the next step.
        trackers: see ``report_to``.
        name: shown beside the bar, and the trackers' name for the run.
        bar: whether it is shown.
    """

    def __init__(
        self,
        folder: Path | None,
        device: torch.device,
        *,
        every: int,
        max_steps: int,
        epoch: int,
        constants: Figures,
        trackers: list[str],
        settings: dict[str, Any],
        name: str,
        bar: bool = True,
    ) -> None:
        self.path = None if folder is None else folder / "log.jsonl"
        self.device, self.every, self.max_steps, self.epoch = device, every, max_steps, epoch
        self.constants, self.name, self.settings, self.tracker_names = constants, name, settings, trackers
        self.clock = Clock(device)
        self.sums = Sums(float)  # since the last line
        self.total = Sums(float)  # until then, since the run began
        self.norms: list[Tensor] = []  # not read yet: that would wait for the device
        self.losses: list[float] = []  # the last 50
        self.step = 0
        self.bytes = 0  # of log.jsonl
        self.trackers: list[Tracker] = []
        self.options: dict[str, Any] = {} if bar else {"disable": True}

    def __enter__(self) -> Log:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "ab", buffering=0)
            self.file.truncate(min(self.bytes, self.file.tell()))
            self.bytes = self.file.seek(0, os.SEEK_END)
            self.trackers = [
                _make_tracker(tracker, self.path.parent, self.name, self.settings, self.step)
                for tracker in self.tracker_names
                if tracker != "none"
            ]
        self.bar = tqdm(
            total=self.max_steps, initial=self.step, desc=self.name, unit=" steps", **self.options
        )
        self.clock.read()  # what came before the first step was none of it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.path is not None:
            self.file.close()
        for tracker in self.trackers:
            tracker.close()

    def add(
        self,
        batch: Batch,
        loss: float,
        norm: Tensor | None,
        rate: float,
        places: int,
        terms: Mapping[str, float] | None = None,
    ) -> None:
        """Count a step: its loss, the gradient's norm, the learning rate, the places it encoded.

        Args:
            terms: of the loss, by name.
        """
        self.step += 1
        self.losses = [*self.losses[-49:], loss]
        tokens = sum(len(side["input_ids"]) for name in TEXTS if (side := getattr(batch, name)) is not None)
        counts = {"steps": 1, "pairs": len(batch.groups), "tokens": tokens, "places": max(places, tokens)}
        _add(self.sums, {**counts, "loss": loss, f"steps {batch.mode}": 1, f"loss {batch.mode}": loss})
        _add(self.sums, {f"term {name}": value for name, value in (terms or {}).items()})
        if norm is not None:
            self.norms.append(norm)
        self.constants["learning_rate"] = rate
        self.bar.update()

    def line(self, is_last: bool) -> None:
        """A line, if this step ends one; called when all of the step is done."""
        if self.step % self.every and not is_last:
            return
        self._read()
        figures = self._figures(self.sums)
        _add(self.total, self.sums)
        self.sums.clear()
        self.bar.set_postfix_str(f"loss {figures['loss']:.4f}, {figures['pairs_per_second']:,.0f} pairs/s")
        self.write(figures)

    def write(self, figures: Figures) -> None:
        """A line of figures at the present step, to log.jsonl and the trackers."""
        if self.path is None:
            return
        whole = {"step": self.step, "epoch": round(self.step / self.epoch, 6), **figures}
        line = json.dumps(whole).encode() + b"\n"
        try:
            if self.file.write(line) < len(line):
                raise OSError("no room for all of it")
            self.bytes += len(line)
        except OSError as error:  # a full disk: the run may go on until there is room
            warnings.warn(f"{self.path}: step {self.step} could not be logged ({error})", stacklevel=2)
            self.file.truncate(self.bytes)
        for tracker in self.trackers:
            tracker.log(figures, self.step)

    def summary(self) -> dict[str, Any]:
        """The same figures over the whole run, with its steps, pairs and seconds."""
        self._read()
        total = self.total.copy()
        _add(total, self.sums)
        figures = self._figures(total)
        seconds = _seconds(total)
        return {
            "steps": round(total["steps"]),
            "pairs": round(total["pairs"]),
            "seconds": round(seconds, 3),
            **figures,
            "loss": sum(self.losses) / len(self.losses),
        }

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "step": self.step,
            "bytes": self.bytes,
            "sums": dict(self.sums),
            "total": dict(self.total),
            "losses": self.losses,
            "constants": self.constants,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.bytes, self.losses = state["step"], state["bytes"], state["losses"]
        self.constants = dict(state["constants"])
        self.sums, self.total = Sums(float, state["sums"]), Sums(float, state["total"])

    def _read(self) -> None:
        """Add what is still on the device or the clock."""
        for phase, seconds in self.clock.read().items():
            self.sums[f"time {phase}"] += seconds
        if self.norms:
            norms = torch.stack(self.norms)
            norms = norms[norms.isfinite()]  # of a step that float16 has overflowed in, it is not
            self.sums["norm"] += float(norms.sum())
            self.sums["norms"] += len(norms)
            self.norms.clear()

    def _figures(self, sums: Sums) -> Figures:
        seconds = max(_seconds(sums), 1e-9)
        figures = {"loss": sums["loss"] / max(sums["steps"], 1)}
        for kind in MODES:
            if sums[f"steps {kind}"]:
                figures[f"loss/{kind}"] = sums[f"loss {kind}"] / sums[f"steps {kind}"]
        for name in [name for name in sums if name.startswith("term ")]:
            figures[f"loss/{name.removeprefix('term ')}"] = sums[name] / max(sums["steps"], 1)
        figures |= self.constants
        if sums["norms"]:
            figures["grad_norm"] = sums["norm"] / sums["norms"]
        figures |= {
            "pairs_per_second": round(sums["pairs"] / seconds, 1),
            "tokens_per_second": round(sums["tokens"] / seconds, 1),
            "padding": round(1 - sums["tokens"] / max(sums["places"], 1), 4),
            "memory_gb": round(_memory(self.device) / 1e9, 3),
        }
        return figures | {f"time/{phase}": round(sums[f"time {phase}"] / seconds, 4) for phase in PHASES}


def _add(sums: Sums, more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] += value


def _seconds(sums: Sums) -> float:
    return sum(sums[f"time {phase}"] for phase in PHASES)


def _memory(device: torch.device) -> float:
    """Bytes at most so far: of a GPU's memory by torch, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- trackers ----------------------------------------------------------------------------------------------


class Tracker(Protocol):
    """Where figures go besides log.jsonl."""

    def log(self, figures: Figures, step: int) -> None: ...

    def close(self) -> None: ...


def check_trackers(names: list[str]) -> None:
    """ValueError for an unknown name, ImportError for a package that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"report_to must be some of {', '.join(TRACKERS)}, got {name!r}")
        if name != "none" and importlib.util.find_spec(name) is None:
            raise ImportError(f"report_to {name} needs the package {name}: pip install {name}")


def _make_tracker(name: str, folder: Path, run: str, settings: dict[str, Any], step: int) -> Tracker:
    return _TensorBoard(folder, step) if name == "tensorboard" else _Wandb(folder, run, settings)


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Of an interrupted run, what came after the step it goes on from is hidden.
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, figures: Figures, step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """A run that goes on under its id: steps that it has already are not taken twice."""

    def __init__(self, folder: Path, run: str, settings: dict[str, Any]) -> None:
        import wandb

        kept = folder / "wandb_id"
        if not kept.exists():
            kept.write_text(os.urandom(8).hex())
        self.run = wandb.init(name=run, dir=str(folder), config=settings, id=kept.read_text(), resume="allow")

    def log(self, figures: Figures, step: int) -> None:
        self.run.log(figures, step=step)

    def close(self) -> None:
        self.run.finish()
