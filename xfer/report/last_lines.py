"""The last lines of a run: its scores, where the model and the card are, what to type next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals

from xfer.config.verbs import quoted
from xfer.core.errors import printable
from xfer.core.log import log
from xfer.core.run_folder import best_checkpoint, what_is_kept
from xfer.core.signals import Stopped
from xfer.data.tta import tta_words
from xfer.evaluation.out_of_fold import in_words, title_of
from xfer.report.audit_files import lines as audit_lines
from xfer.report.inputs import Work


def last_lines(work: Work) -> str:
    """What a finished run prints at its end; its very last line names the folder."""
    tta = tta_words(work.plan.specs.tta)
    said = f", {tta}" if tta else ""
    cv = work.cv
    lines = [(title_of(cv), in_words(cv))] if cv else []
    scores = work.scores.items()
    lines += [(f"{name} {score.title}", score.in_words() + said) for name, score in scores]
    if work.worth:
        worth = work.worth["sentences"]
        lines += [("" if i else "worth", sentence) for i, sentence in enumerate(worth)]
        lines.append(("page", str(work.folder / "worth.html")))
    best, card = best_checkpoint(work.folder), work.folder / "report.html"
    if (work.fitted or work.soup) and best.is_file():
        lines.append(("best model", str(best)))
    if "report" in work.plan.specs.stages:
        lines.append(("report", str(card)))
    if (work.fitted or work.soup) and best.is_file():
        lines.append(("next", f"xfer predict {named(work.folder)} IMAGES"))
    lines += audit_lines(work)
    width = max((len(name) for name, _ in lines), default=0)
    rows = [f"{name:<{width}}  {printable(text)}" for name, text in lines]
    return "\n".join([*rows, f"everything is in {printable(work.folder)}"])


@contextmanager
def told_when_stopped(folder: Path, *, resumes: bool) -> Iterator[None]:
    """Within, a signal that ends the run says what of it is kept, and how to go on or, where
    nothing ``resumes`` it, that its command begins anew."""
    try:
        yield
    except Stopped as ended:
        kept = "; the features that were computed are cached, and the same command begins anew"
        if resumes:
            resume = f"to go on, type xfer resume {printable(named(folder))}"
            kept = f", {what_is_kept(folder)}; {resume}"
        log.info(f"stopped by {Signals(ended.number).name}{ended.after}{kept}")
        raise


def named(run: Path) -> str:
    """What names a run behind a verb, quoted: the end of its folder where that is enough, which a
    number, as a sweep calls its jobs, is not."""
    enough = run.parent.parent == Path("outputs") and not run.name.isdecimal()
    return quoted(run.name if enough else str(run))
