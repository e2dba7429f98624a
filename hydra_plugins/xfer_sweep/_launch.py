"""The slots of this machine for any sweeper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from xfer.config.provenance import override_key
from xfer.config.verbs import override
from xfer.core.errors import JobFailed
from xfer.core.files import read_json
from xfer.core.log import say
from xfer.core.run_folder import OUTPUT
from xfer.plan.preflight import check_gpus
from xfer.sweep.executors.pool import Pool, Task
from xfer.sweep.executors.slots import JobSlot, divide, visible_gpus
from xfer.sweep.ledger import Ledger
from xfer.sweep.objective import trial_value
from xfer.sweep.requirements import refuse_one_run

if TYPE_CHECKING:
    from hydra_plugins.xfer_sweep import SlotLauncher


def slots(launcher: SlotLauncher, accelerator: str, devices: int = 1) -> list[JobSlot]:
    """Those that the launcher's options ask for. Raises XferError for what is not there."""
    if accelerator == "gpu" and not visible_gpus():
        check_gpus(accelerator, devices)  # torch may know of one
    return divide(launcher.slots, launcher.jobs_per_gpu, accelerator, devices)


def flags(config: DictConfig) -> list[str]:
    """The words that make a job find the configuration of the sweep."""
    words = []
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            words += ["--config-dir", str(source.path)]
    raw = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    return words + [str(t) for t in raw if str(t).startswith("hydra.searchpath")]  # type: ignore[union-attr]


def launch(
    launcher: SlotLauncher, config: DictConfig, rows: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Run every row of overrides as a job, numbered from ``first``. Raises SweepError where they
    are to go on in one folder."""
    for row in rows:
        refuse_one_run(_resume(config, row))
    pool = Pool(slots(launcher, str(OmegaConf.select(config, "trainer.accelerator") or "auto")))
    pool.persistent = launcher.persistent
    ledger, shared = Ledger(Path(config.hydra.sweep.dir)), flags(config)
    monitor = str(OmegaConf.select(config, "checkpoint.monitor"))
    tasks = []
    for number, row in enumerate(rows, first):
        folder = ledger(number)
        folder.mkdir(parents=True, exist_ok=True)
        mine = [text.lstrip("+") for text in row] + [override("run.dir", str(folder))]
        tasks.append(Task(number, (*shared, *mine), folder))
    returns = {task.number: JobReturn(overrides=list(rows[task.number - first])) for task in tasks}

    def ended(task: Task, code: int) -> bool:
        done, line = returns[task.number], ledger.settle(task.number, code)
        code = (ledger.code(task.number) or code or 1) if line else 0
        done.status = JobStatus.FAILED if code else JobStatus.COMPLETED
        done.return_value = JobFailed(code, line) if code else _best(task.folder, monitor)
        how = f"exit {code}: {line}" if code else "finished"
        say(f"job {task.number}, {how}; its output is in {task.folder / OUTPUT}")
        return False

    waiting = list(tasks)
    pool.run(lambda: waiting.pop(0) if waiting else None, ended)
    return [returns[task.number] for task in tasks]


def _resume(config: DictConfig, row: Sequence[str]) -> str | None:
    """``checkpoint.resume`` of a job, as typed, else as configured."""
    typed = [text.partition("=")[2] for text in row if override_key(text) == "checkpoint.resume"]
    asked = typed[-1] if typed else OmegaConf.select(config, "checkpoint.resume")
    return None if asked in (None, "null") else str(asked)


def _best(folder: Path, monitor: str) -> float | None:
    path = folder / "result.json"
    return trial_value(read_json(path), monitor) if path.is_file() else None
