"""``result.json``: one run in numbers, for machines."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from xfer.config.help import DISTRIBUTION
from xfer.core.files import file_sha256
from xfer.core.types import Plain
from xfer.data.tta import tta_facts
from xfer.export.cache_key import versions
from xfer.report.certificate_section import NOT_CHECKED, certificate_outcome
from xfer.training.features import UNCACHED
from xfer.training.oom import batch_sizes

if TYPE_CHECKING:
    from pathlib import Path

    from xfer.config.specs import Specs
    from xfer.report.inputs import Work

_TORCH = ("torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "onnx")
_WITHOUT_TORCH = ("onnxruntime", "pillow", "numpy")


def _facts(specs: Specs, packages: Sequence[str], **known: object) -> Plain:
    """What ``result.json`` says of any run: everything the contract names, with what is ``known``;
    ``None`` where a run has no such fact or nobody checked it."""
    found = versions((DISTRIBUTION, *packages))  # None in a checkout that is not installed
    installed = {"xfer": found.pop(DISTRIBUTION), **found}
    facts: Plain = {
        "experiment": specs.experiment,
        "status": "finished",
        "seed": specs.seed,
        "best": None,
        "scores": {},
        "cv": None,
        "tta": tta_facts(specs.tta),
        "certificate": None,
        "params": None,
        "freeze": {"proved": None},
        "source": None,
        "timing": None,
        "checkpoint": None,
        "calibration": None,
        "mirroring": None,
        "ranks": None,
        "teacher": None,
        "features": dict(UNCACHED),
        "export": [],
        "audit": None,
        "warnings": [],
        "device": "cpu",
        "precision": "32-true",
        "versions": {"python": platform.python_version(), **installed},
        "command": specs.command,
    }
    return facts | known


def outcome_of_file(
    specs: Specs, model: Path, predicted: int, timing: Plain, certificate: Plain | None
) -> Plain:
    """The result of a prediction of ``predicted`` images with the exported file ``model``, and what
    that says of its certificate."""
    digest = file_sha256(model)
    return _facts(
        specs,
        _WITHOUT_TORCH,
        source={"kind": "onnx", "origin": str(model), "sha256": digest},
        checkpoint={"path": str(model), "sha256": digest},
        timing=timing,
        predicted=predicted,
        certificate=certificate and {**certificate, **NOT_CHECKED},
    )


def outcome(work: Work) -> Plain:
    """The result of what the stages did."""
    plan, fitted = work.plan, work.fitted

    def named(path: Path) -> str:
        """``path``, relative inside the run folder."""
        inside = path.is_relative_to(work.folder)
        return path.relative_to(work.folder).as_posix() if inside else str(path)

    path = work.checkpoint()
    scored = path if path and path.is_file() else None
    left_out = ("spec", "kept", "classes", "rows")
    known = {
        "status": "failed" if work.refused else "finished",
        "best": {**fitted.best, "checkpoint": named(fitted.checkpoint)} if fitted else None,
        "scores": {name: score.to_plain() for name, score in work.scores.items()},
        "cv": work.cv,
        "params": plan.parameter_counts if plan.phases else None,
        "freeze": {
            "proved": fitted.proved if fitted else None,
            "groups": fitted.audits if fitted else [],
        },
        "source": {k: v for k, v in plan.card.source.items() if k not in left_out},
        "timing": _timing(work),
        "checkpoint": scored and {"path": named(scored), "sha256": file_sha256(scored)},
        "calibration": work.card.calibration or None,
        "teacher": work.taught,
        "solved": fitted.solved if fitted else None,
        "mirroring": (fitted.mirrored or None) if fitted else None,
        "ranks": (fitted.ranks or None) if fitted else None,
        "certificate": certificate_outcome(work),
        "features": done.features if (done := fitted or work.audited) else dict(UNCACHED),
        "export": [
            {k: v for k, v in asdict(file).items() if k != "batches"} for file in work.exports
        ],
        "audit": work.audited.counts if work.audited else None,
        "warnings": [
            *plan.facts["remarks"],
            *work.card.calibration.get("warnings", ()),
            *work.warnings,
        ],
        "memory": batch_sizes(work.folder),
        "worth": work.worth,
        "soup": work.soup,
        "chosen": plan.specs.chosen,
        "embed": work.embedded,
        "device": work.device,
        "precision": plan.specs.trainer.precision if fitted else "32-true",
    }
    return _facts(plan.specs, _TORCH, **known)


def _timing(work: Work) -> Plain:
    rows = work.fitted.rows if work.fitted else []
    shares = [row["data_share"] for row in rows if "data_share" in row]
    features_s = work.audited.seconds[0] if work.audited else None
    if work.fitted:
        features_s = work.fitted.features_s
    return {
        "startup_s": work.startup_s,
        "features_s": features_s,
        "fit_s": work.fitted.seconds if work.fitted else None,
        "epoch_s": [row["epoch_s"] for row in rows],
        "data_share": statistics.median(shares) if shares else None,
        "step_ms_median": statistics.median(row["step_ms"] for row in rows) if rows else None,
        "total_s": time.perf_counter() - work.began,
    }
