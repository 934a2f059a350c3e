"""Which way of making batches is best: strategies, each tuned on dev, over seeds, tested side by side.

    python -m hybridfast.study study.yaml --dry_run      # how many runs, and how long they take
    python -m hybridfast.study study.yaml                # does them, or goes on with them
    python -m hybridfast.study study.yaml --report       # the report of what is complete by now

The file says models, strategies, learning rates to choose from, seeds and tests; configs/study-static.yaml is
one. Learning rates are chosen for each strategy by itself, on dev alone. The same command may run several
times at once, on several machines that share the folder: each run is done by one of them.
"""

from __future__ import annotations

import shlex
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from hybridfast import cli
from hybridfast.studies import plan, report
from hybridfast.studies.runs import Worker
from hybridfast.training.config import TrainConfig
from hybridfast.training.interrupts import Interrupted

__all__ = ["main"]


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        cli.fail(message)


def main(argv: list[str] | None = None) -> None:
    """The command: see the module's text."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(
        prog="python -m hybridfast.study",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--output_dir", help="Folder of the study, instead of the file's.")
    parser.add_argument("--dry_run", action="store_true", help="Say how many runs and how long; then stop.")
    parser.add_argument("--report", action="store_true", help="Write the report of what there is; then stop.")
    flags = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "hybridfast.study", *argv])
    with cli.usage_errors():
        study = plan.read(flags.study, partial(cli.from_flags, TrainConfig), flags.output_dir)
        worker = Worker(study)
        worker.check()
        if not flags.report:
            worker.prepare()
        if flags.dry_run:
            from hybridfast.studies.estimate import estimate

            print(estimate(study, worker))
            return
        if not flags.report:
            try:
                worker.work(after=_now_and_then(partial(report.write, study, command)))
            except Interrupted as error:
                print(f"{error}; to go on: {command}")
                raise SystemExit(0) from None
        print(report.write(study, command))


def _now_and_then(write: Callable[[], object]) -> Callable[[object], None]:
    """Called again and again, does it so rarely that it takes a twentieth of the time at most."""
    since, took = time.monotonic(), 0.0

    def maybe(_: object) -> None:
        nonlocal since, took
        if time.monotonic() - since >= 20 * took:
            begun = time.monotonic()
            write()
            since = time.monotonic()
            took = since - begun

    return maybe


if __name__ == "__main__":
    main()
