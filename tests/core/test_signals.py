"""What a signal does outside the step in progress: exit codes, a quiet terminal, a quick end."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import warm
from PIL import Image
from runs import wait_for

from xfer import __main__ as door
from xfer.core.run_status import as_xfer
from xfer.core.signals import Stopped, heeded, stop

TERM = signal.SIGTERM
LONG = 300.0
"""Seconds that a test takes only where it is to fail, and no machine takes for anything else."""


def stopped(work: Any) -> Stopped:
    """The stop that ends ``work``, which sends itself a SIGTERM."""
    with pytest.raises(Stopped) as caught, heeded():
        work()
    return caught.value


def test_what_fails_while_a_stop_is_obeyed_is_that_stop() -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), TERM)
        finally:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    assert stopped(work).exit == 143


def test_a_worker_that_the_signal_ended_first_is_that_stop_in_the_record_too() -> None:
    with heeded():
        error = RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
        assert as_xfer(error) is error, "no signal came: a bug"
        stop.waits = True
        os.kill(os.getpid(), TERM)
        found = as_xfer(error)
        assert isinstance(found, Stopped) and found.exit == 143
        assert as_xfer(ValueError("x")).args == ("x",), "a bug is one, signal or not"


def test_a_stop_that_python_swallows_comes_again() -> None:
    class Deleted:
        def __del__(self) -> None:
            os.kill(os.getpid(), TERM)
            time.sleep(0.001)

    def work() -> None:
        Deleted()
        time.sleep(LONG)

    assert stopped(work).exit == 143


def test_a_stop_ends_the_workers_of_the_run_and_no_others(
    capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing

    import torch.utils.data as data

    # How long torch waits for a worker that it has asked to end.
    monkeypatch.setattr(data._utils, "MP_STATUS_CHECK_INTERVAL", LONG)
    context = multiprocessing.get_context("fork")
    other = context.Process(target=time.sleep, args=(LONG,), daemon=True)
    other.start()
    loaded: list[Any] = []

    def work() -> None:
        loader = data.DataLoader(list(range(8)), num_workers=2, persistent_workers=True)
        loaded.append(iter(loader))
        next(loaded[0])
        os.kill(os.getpid(), TERM)
        time.sleep(LONG)

    began = time.monotonic()
    stopped(work)
    for worker in loaded[0]._workers:
        worker.join(LONG)
    assert all(not w.is_alive() for w in loaded[0]._workers) and other.is_alive()
    loaded.clear()
    assert time.monotonic() - began < LONG, "a worker was waited for"
    assert "Traceback" not in capfd.readouterr().err
    other.kill()
    other.join()


def test_a_run_that_failed_or_was_stopped_takes_the_fast_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[list[int]] = []
    monkeypatch.setattr("atexit.register", lambda leave, codes: ends.append(codes))
    monkeypatch.setattr(door, "import_at_ease", lambda: None)
    for number in (7, 143):
        monkeypatch.setattr(door, "_main", lambda _, n=number: sys.exit(n))
        with pytest.raises(SystemExit):
            door.main()
    assert ends == [[7], [143]]


def test_a_signal_to_the_group_while_a_later_view_is_computed_is_143_and_quiet(
    tmp_path: Path,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 700, 700, 3), dtype=np.uint8)
    for i in range(60):
        (tmp_path / "data" / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.roll(pixels[i % 2], 10 * i, axis=0))
        picture.save(tmp_path / "data" / f"c{i % 2}" / f"{i}.jpg")
    command = "experiment=digits_sgd data=folder data.root=data freeze=head_only augment=standard"
    more = "features=require trainer.max_epochs=90 data.workers=2 data.batch_size=4 stages=[fit]"
    views = "features.views=80 backbone.image_size=96 data.decoded_gb=0"
    words = [*command.split(), *more.split(), *views.split()]
    patient = f"import torch.utils.data as d\nd._utils.MP_STATUS_CHECK_INTERVAL = {LONG}\n"
    process = warm.start(tmp_path, *words, script=patient + warm.COMMAND, start_new_session=True)
    cache = Path(os.environ["XFER_CACHE"]) / "features"
    wait_for(lambda: len(list(cache.glob("*.npy"))) >= 4, process)
    os.killpg(process.pid, TERM)
    code = process.wait(LONG)
    said, _ = process.communicate()
    assert code == 143, said
    for word in ("Traceback", "ignored", "DataLoader", "error"):
        assert word not in said, said
