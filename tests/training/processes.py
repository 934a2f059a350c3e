"""Training in processes of their own, to be killed. They are forked from one that has imported everything."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["training.processes", "hybridfast.train", "sentence_transformers"])


def start(argv: list[str], output: Path, die: tuple[str, int] | None = None) -> Any:
    """``python -m hybridfast.train`` with such flags.

    Args:
        output: a file for what it prints.
        die: a function of `os` and a number: at that call of it, the process kills itself.
    """
    process = CONTEXT.Process(target=_main, args=(argv, str(output), die))
    process.start()
    return process


def _main(argv: list[str], output: str, die: tuple[str, int] | None) -> None:
    import torch

    from hybridfast import train

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(output, "w", buffering=1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if die:
        function, calls = getattr(os, die[0]), [0]

        def dying(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == die[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        setattr(os, die[0], dying)
    train.main(argv)


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
