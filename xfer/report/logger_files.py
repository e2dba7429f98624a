"""What a logger is handed when a run is done: figures, the best checkpoint, the card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfer.core.live_line import working
from xfer.core.run_folder import best_checkpoint

if TYPE_CHECKING:
    from xfer.report.inputs import Work

_FILES = ("figures/*.png", "report.html", "report.md", "result.json")


def attach(work: Work) -> bool:
    """Hand the logger of the fit the files that there are; whether that failed, of which there is
    then a warning."""
    logger, folder = work.fitted and work.fitted.logger, work.folder
    if work.fitted is None or not logger or logger.problem:
        return False
    there = [path for pattern in _FILES for path in sorted(folder.glob(pattern))]
    best = best_checkpoint(folder)
    there += [best] if best.is_file() else []
    files = {path.relative_to(folder).as_posix(): path for path in there}
    with working("logger"):
        logger.attach(files, work.fitted.best["step"])
    if logger.problem:
        work.warnings.append(logger.problem)
    return logger.problem is not None
