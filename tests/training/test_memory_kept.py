"""Memory that a training step frees stays for the next one."""

import os
import resource
import subprocess
import sys
import weakref

import pytest

import xfer
from xfer.core import memory
from xfer.core.memory import keep_freed
from xfer.training.calibrate import calibrate_best
from xfer.training.lightning import lightning_trainer

FAULTS = """
import resource, sys, torch
from xfer.core.memory import free, keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        # Freed together, as a backward pass frees what the forward pass kept.
        held = [torch.ones(10_000_000) for _ in range(4)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults()
anew, said = faults(), keep_freed()
faults()
kept, held = faults(), resident()
free()
print(anew, said, kept, held - resident())
"""


def measured():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    anew, said, kept, given_back = done.stdout.split()
    return int(anew), said == "True", int(kept), int(given_back)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_step_gets_no_new_pages_for_what_the_last_one_freed():
    anew, said, kept, given_back = measured()
    if not said:
        pytest.skip("no glibc")
    assert kept < anew / 10
    assert given_back > 100_000_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_what_the_user_set_for_malloc_wins(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert keep_freed() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_limit_of_the_address_space_counts_what_is_kept_and_so_nothing_is():
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 46, before[1]))
    try:
        assert keep_freed() is False
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Watched:
    """What is asked of ``gc``, in a process in which nobody has frozen anything but it itself."""

    def __init__(self, frozen=0):
        self.frozen, self.asked = frozen, []

    def __getattr__(self, name):
        return lambda: self.asked.append(name)

    def get_freeze_count(self):
        return self.frozen


def test_garbage_is_looked_for_among_what_a_fit_has_made(monkeypatch):
    seen = Watched()
    monkeypatch.setattr(memory, "gc", seen)
    monkeypatch.setattr(memory, "_used", False)
    monkeypatch.setattr(memory, "_aside", False)
    for asked in (["freeze", "unfreeze"], ["collect", "freeze", "unfreeze"]):
        with pytest.raises(KeyError), memory.new_garbage_alone():
            assert seen.asked[-1] == "freeze"
            raise KeyError
        assert seen.asked == asked
        seen.asked.clear()
    monkeypatch.setattr(memory, "gc", Watched(frozen=1))
    with memory.new_garbage_alone():
        assert memory.gc.asked == []
    assert memory.gc.asked == []
    # Who has set aside what there was is taken at its word.
    monkeypatch.setattr(memory, "gc", Watched())
    memory.set_aside()
    with memory.new_garbage_alone():
        assert memory.gc.asked == ["freeze"]
    assert memory.gc.asked == ["freeze"]


def test_when_a_fit_is_over_its_optimizer_is_gone(tmp_path, monkeypatch):
    made = []

    def trainer(*given):
        built = lightning_trainer(*given)
        made.append(weakref.ref(built))
        return built

    def over(*given):
        assert made and made[0]() is None
        return calibrate_best(*given)

    monkeypatch.setattr("xfer.training.fit.lightning_trainer", trainer)
    monkeypatch.setattr("xfer.training.fit.calibrate_best", over)
    short = ["stages=[fit]", "trainer.max_epochs=1", "data.workers=0", "data.digits=[5,6]"]
    xfer.run("digits_sgd", [*short, "features=auto", f"run.dir={tmp_path}/run"])


def test_a_fit_on_the_cpu_keeps_memory_and_gives_it_back(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("xfer.training.fit.keep_freed", lambda: calls.append("keep"))
    monkeypatch.setattr("xfer.training.fit.free", lambda: calls.append("free"))
    xfer.run(
        "digits_freeze",
        [
            *("stages=[fit]", "trainer.max_epochs=1", "data.workers=0", "trainer=cpu"),
            f"run.dir={tmp_path}/run",
        ],
    )
    assert calls == ["keep", "free"]
