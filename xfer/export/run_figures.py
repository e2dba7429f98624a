"""What a run knows of its network, for a file that is handed to people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xfer.core.files import file_sha256, read_json
from xfer.core.run_folder import run_of

if TYPE_CHECKING:
    from pathlib import Path

    from xfer.core.types import LabelScore, Plain, Score
    from xfer.plan.plan import Plan


def run_figures(
    plan: Plan, checkpoint: Path | None, scores: Mapping[str, Score | LabelScore]
) -> Plain:
    """``scores`` by split and ``cv`` as ``result.json`` has them, and ``images``: how many each
    split has that the network was trained or chosen on.

    The scores are those of this run, or else what the run that wrote ``checkpoint`` says of these
    very bytes.
    """
    splits = plan.dataset.splits if plan.dataset else {}
    used = plan.card.splits
    images = {n: len(s) for n, s in splits.items() if used.get(n) == s.sha256 and s.sha256}
    known: Plain = {"scores": {name: score.to_plain() for name, score in scores.items()}}
    if not scores and checkpoint is not None:
        known = _of_the_run(checkpoint, used)
    return {**known, "images": known.get("images", {}) | images}


def _of_the_run(checkpoint: Path, used: Mapping[str, str]) -> Plain:
    run = run_of(checkpoint)
    path = run / "result.json" if run else None
    if path is None or not path.is_file():
        return {}
    try:
        facts = read_json(path)
        if facts["checkpoint"]["sha256"] != file_sha256(checkpoint):
            return {}
        splits = read_json(path.with_name("plan.json"))["splits"].items()
        seen = (pair for pair in splits if used.get(pair[0], "") == pair[1]["sha256"])
        images = {name: split["n"] for name, split in seen}
        return {"scores": facts["scores"], "cv": facts.get("cv"), "images": images}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # somebody else's file: the card says that nothing was scored
