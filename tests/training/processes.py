"""Training in processes of their own, to be killed. They are forked from one that has imported everything."""

from __future__ import annotations

import importlib.util
import inspect
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = [
    {"id": str(i), "lang": lang, "query": f"{stem}{i}", "passage": f"{stem}{i} {stem}"}
    for i in range(40)
    for lang, stem in (("aa", "ka"), ("bb", "mo"))
]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["training.processes", "hybridfast.train", "sentence_transformers"])


def flags(data: Path, folder: Path, steps: int, *more: str) -> list[str]:
    """A small run of these words, with a checkpoint a step, which goes on where it was cut off."""
    small = ["--batch_size", "8", "--max_steps", str(steps), "--dimension", "8", "--save_steps", "1"]
    resume = ["--output_dir", str(folder), "--resume_from_checkpoint", "auto"]
    return ["--data", str(data), *small, *resume, *more]


def start(
    argv: list[str],
    output: Path,
    die: tuple[str, int] | None = None,
    environment: dict[str, str] | None = None,
) -> Any:
    """``python -m hybridfast.train`` with such flags.

    Args:
        output: a file for what it prints.
        die: a function of `os` and a number: at that call of it, the process kills itself. "raise": at that
            step's loss, there is an error.
        environment: variables that it has besides this process's.
    """
    process = CONTEXT.Process(target=_main, args=(argv, str(output), die, environment or {}))
    process.start()
    return process


def environments(world: int) -> list[dict[str, str]]:
    """What torchrun would set for each rank."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def of_test(function: Callable[..., None], *arguments: Any) -> Any:
    """A function of a test's file, in a process to be started, which finds it by its file.

    By its module's name it could not: pytest imports tests from places that are not on the path.
    """
    file, name = inspect.getfile(function), function.__name__
    return CONTEXT.Process(target=_call, args=(file, name, arguments))


def _call(file: str, name: str, arguments: tuple[Any, ...]) -> None:
    spec = importlib.util.spec_from_file_location("file_of_tests", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    getattr(module, name)(*arguments)


def _main(argv: list[str], output: str, die: tuple[str, int] | None, environment: dict[str, str]) -> None:
    import torch

    from hybridfast import train
    from hybridfast.infonce import distributed

    os.environ |= environment

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(output, "w", buffering=1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if die:
        module, name = (distributed, "info_nce") if die[0] == "raise" else (os, die[0])
        function, calls = getattr(module, name), [0]

        def dying(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == die[1] and module is distributed:
                raise RuntimeError(f"rank {os.environ['RANK']} has had enough")
            if calls[0] == die[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        setattr(module, name, dying)
    train.main(argv)


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
