"""Claims of folders: one holder at a time, whoever ends however."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from hybridfast.studies import claims
from hybridfast.studies.claims import Claim


def claim_of_another(folder: Path, host: str, age: float) -> Path:
    path = folder / ".claim-1"
    path.write_text(json.dumps({"host": host, "pid": 1, "began": 0.0}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_one_at_a_time(tmp_path: Path) -> None:
    claim = Claim.take(tmp_path / "run")
    assert claim is not None
    with claim:
        assert Claim.take(tmp_path / "run") is None
        assert Claim.holder(tmp_path / "run") == f"process {os.getpid()} on {claims.socket.gethostname()}"
    assert Claim.holder(tmp_path / "run") is None
    assert not [*(tmp_path / "run").iterdir()]
    assert Claim.take(tmp_path / "run") is not None


def test_one_of_many_wins_a_claim_that_is_over(tmp_path: Path) -> None:
    claim_of_another(tmp_path, "elsewhere", age=10 * claims.SILENCE)
    barrier, found = threading.Barrier(16), []

    def take() -> None:
        barrier.wait()
        found.append(Claim.take(tmp_path))

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [claim for claim in found if claim]
    assert winner.path.name == ".claim-2"
    with winner:
        assert Claim.take(tmp_path) is None
    assert not [*tmp_path.iterdir()]


def test_a_machine_that_is_heard_of_keeps_its_claim(tmp_path: Path) -> None:
    path = claim_of_another(tmp_path, "elsewhere", age=claims.SILENCE / 2)
    assert Claim.take(tmp_path) is None
    os.utime(path, (time.time() - 2 * claims.SILENCE,) * 2)
    assert Claim.take(tmp_path) is not None


def test_a_process_of_this_machine_is_asked_whether_it_lives(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    path = tmp_path / ".claim-1"
    me = {"host": claims.socket.gethostname(), "pid": child.pid, "began": claims._began(child.pid)}
    path.write_text(json.dumps(me))
    os.utime(path, (0, 0))  # silent for long, as a stopped process is
    assert Claim.take(tmp_path) is None
    child.kill()  # whose number stays, for nobody has waited for it
    while claims._began(child.pid) is not None:
        time.sleep(0.01)
    assert Claim.take(tmp_path) is not None
    child.wait()


def test_a_holder_is_heard_of_and_ends_where_it_was_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(claims, "BEAT", 0.01)
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    claim = Claim.take(tmp_path)
    assert claim is not None
    with claim:
        os.utime(claim.path, (0, 0))
        while claim.path.stat().st_mtime == 0:
            time.sleep(0.01)
        (tmp_path / ".claim-2").write_text("{}")
        assert ended.wait(10)
    assert (tmp_path / ".claim-2").exists()  # not its own
