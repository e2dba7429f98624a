"""Runs that are killed before and after named moments, begun again, and held against the whole run.

``python tests/proofs/faults.py`` prints, for every moment, what differs; ``before_save`` in its
arguments is one moment, ``save`` both. The kill is a SIGKILL that
the run gives itself, from a hook that this script puts around a function of xfer: no product code
knows of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from runs import OPTIONS
from survival import begin, difference, end, finished, spoil
from warm import warm

IMAGES = [*OPTIONS[1:], "trainer.max_epochs=2", "checkpoint.resume=auto"]
EARLY = [*IMAGES, "trainer.patience=1", "trainer.max_epochs=9", "optim.lr=1e-7"]
BALANCED = [*IMAGES, "data.sampler=balanced"]
FEATURES = [*IMAGES, "freeze=head_only", "features=require"]
OUTPUTS = [*IMAGES, "stages=[fit,evaluate,export,report]", "export=safetensors"]
# name: command, function, and at which of its calls.
POINTS = {
    "forward": (IMAGES, "xfer.training.module:Classifier.training_step", 30),
    "forward_balanced": (BALANCED, "xfer.training.module:Classifier.training_step", 30),
    "backward": (IMAGES, "torch:Tensor.backward", 30),
    "optimizer_step": (IMAGES, "torch.optim:SGD.step", 30),
    "schedule_step": (IMAGES, "xfer.training.module:Classifier.lr_scheduler_step", 30),
    "average": (IMAGES, "xfer.training.ema:Ema.update", 40),
    "copy": (IMAGES, "xfer.training.callbacks.progress:History._keep", 5),
    "save": (IMAGES, "xfer.training.callbacks.progress:History.save_resume", 6),
    "rename_of_the_last_file": (IMAGES, "xfer.training.lightning:_keep_previous", 6),
    "validation": (IMAGES, "xfer.training.module:Classifier.begin_validation", 2),
    "validation_batch": (IMAGES, "xfer.training.module:Classifier.validation_step", 5),
    "validation_end": (IMAGES, "xfer.training.module:Classifier.score", 2),
    "best_update": (IMAGES, "xfer.training.callbacks.progress:History.update_best", 2),
    "best_file": (IMAGES, "xfer.training.callbacks.progress:write_snapshot", 2),
    "history": (IMAGES, "xfer.training.callbacks.progress:write_rows", 2),
    "epoch_end": (IMAGES, "xfer.training.callbacks.timeline:Timeline.on_train_epoch_end", 1),
    "early_stop": (EARLY, "xfer.training.callbacks.timeline:Timeline.on_train_epoch_end", 4),
    "freeze_proof": (IMAGES, "xfer.training.callbacks.freeze_phase:Phases.prove", 1),
    "whole_best_file": (FEATURES, "xfer.training.fit:_complete", 1),
    "predictions": (IMAGES, "xfer.evaluation.predict:write_predictions", 1),
    "plan": (IMAGES, "xfer.plan.preflight:write_plan", 1),
    "status": (IMAGES, "xfer.core.run_status:Status.write", 2),
    "export": (OUTPUTS, "xfer.export.stage:hand_over", 1),
    "report": (OUTPUTS, "xfer.report.write:finish", 1),
    "report_page": (OUTPUTS, "xfer.report.write:render", 1),
    "feature_build": (FEATURES, "xfer.training.features.store:Store._build", 2),
    "feature_chunk": (FEATURES, "xfer.training.features.extract:extract", 9),
    "feature_entry": (FEATURES, "xfer.training.features.extract:Extraction.entry", 1),
}


def kill_at(function: str, count: int, after: bool) -> None:
    """Have this process killed before or after call ``count`` of ``module:dotted.function``."""
    module, _, dotted = function.partition(":")
    *owners, name = dotted.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def hooked(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        due = calls == count
        if due and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(*args, **kwargs)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, hooked)


def survived(moment: str, folder: Path, wholes: dict[str, Path]) -> str:
    """What a kill at this moment changes in a run in ``folder``.

    ``wholes`` has the whole run of each command; that of a new one is made and added.
    """
    when, _, name = moment.partition("_")
    command, function, count = POINTS[name]
    kind = str(hash(tuple(command)))
    if kind not in wholes:
        (whole := folder.with_name(kind)).mkdir()
        assert end(begin(whole, command)) == 0, (whole / "output").read_text()
        wholes[kind] = finished(whole)
    folder.mkdir()
    code = end(begin(folder, command, partial(kill_at, function, count, when == "after")))
    if code != -signal.SIGKILL:
        return f"was never reached, exit {code}"
    return difference(end(begin(folder, command)), folder, wholes[kind])


def main() -> None:
    """Print what differs by moment, as JSON: nothing, where nothing does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("points", nargs="*", help="of these moments only")
    parser.add_argument("--spoilt", default="", help="the negative control: this moment again")
    asked = parser.parse_args()
    moments = [f"{when}_{name}" for name in POINTS for when in ("before", "after")]
    if asked.points:
        moments = [m for m in moments if {m, m.partition("_")[2]} & set(asked.points)]
    warm()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        root, wholes = Path(place), dict[str, Path]()
        for moment in moments:
            found[moment] = survived(moment, root / moment, wholes)
            print(moment, found[moment] or "same", file=sys.stderr, flush=True)
        if asked.spoilt:
            spoil()
            found["spoilt"] = survived(asked.spoilt, root / "spoilt", wholes)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
