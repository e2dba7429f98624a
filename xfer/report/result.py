"""``result.json``: one run in numbers, for machines."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from xfer.config.help import DISTRIBUTION
from xfer.core.files import file_sha256
from xfer.core.types import Plain
from xfer.plan.facts import count_parameters
from xfer.training.features import UNCACHED
from xfer.training.oom import told

if TYPE_CHECKING:
    from pathlib import Path

    from xfer.report.inputs import Work

_PACKAGES = (
    DISTRIBUTION,
    "torch",
    "torchvision",
    "timm",
    "pytorch-lightning",
    "torchmetrics",
    "onnx",
)


def outcome(work: Work) -> Plain:
    """Everything the contract names; ``None`` where a run has no such fact or nobody checked it."""
    plan, specs = work.plan, work.plan.specs
    return {
        "experiment": specs.experiment,
        "status": "failed" if work.refused else "finished",
        "seed": specs.seed,
        "best": _best(work),
        "scores": {name: score.to_plain() for name, score in work.scores.items()},
        "params": count_parameters(plan) if plan.phases else None,
        "freeze": {
            "proved": work.fitted.proved if work.fitted else None,
            "groups": work.fitted.audits if work.fitted else [],
        },
        "source": {
            k: v
            for k, v in plan.card.source.items()
            if k not in ("spec", "kept", "classes", "rows")
        },
        "timing": _timing(work),
        "checkpoint": _checkpoint(work),
        "solved": work.fitted.solved if work.fitted else None,
        "features": work.fitted.features if work.fitted else dict(UNCACHED),
        "export": [
            {k: v for k, v in asdict(file).items() if k != "batches"} for file in work.exports
        ],
        "warnings": [*plan.facts["remarks"], *work.warnings],
        "memory": told(work.folder),
        "device": work.device,
        "precision": specs.trainer.precision if work.fitted else "32-true",
        "versions": _versions(),
        "command": specs.command,
    }


def _best(work: Work) -> Plain | None:
    if work.fitted is None:
        return None
    return {**work.fitted.best, "checkpoint": _named(work, work.fitted.checkpoint)}


def _checkpoint(work: Work) -> Plain | None:
    """What was scored and exported."""
    path = work.checkpoint()
    if path is None or not path.is_file():
        return None
    return {"path": _named(work, path), "sha256": file_sha256(path)}


def _named(work: Work, path: Path) -> str:
    """``path``, inside the run folder where it is the run's own."""
    own = path.is_relative_to(work.folder)
    return path.relative_to(work.folder).as_posix() if own else str(path)


def _timing(work: Work) -> Plain:
    rows = work.fitted.rows if work.fitted else []
    shares = [row["data_share"] for row in rows if "data_share" in row]
    return {
        "startup_s": work.startup_s,
        "features_s": work.fitted.features_s if work.fitted else None,
        "fit_s": work.fitted.seconds if work.fitted else None,
        "epoch_s": [row["epoch_s"] for row in rows],
        "data_share": statistics.median(shares) if shares else None,
        "step_ms_median": statistics.median(row["step_ms"] for row in rows) if rows else None,
        "total_s": time.perf_counter() - work.began,
    }


def _versions() -> Plain:
    found: Plain = {"python": platform.python_version()}
    for package in _PACKAGES:
        key = "xfer" if package == DISTRIBUTION else package
        try:
            found[key] = version(package)
        except PackageNotFoundError:  # a checkout that is not installed
            found[key] = None
    return found
