"""``choose=cached``, top to bottom: price list, choosing, judging, and the model of the winner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.core.files import write_text, yaml_text
from xfer.core.live_line import working
from xfer.core.log import LINES, log, open_log
from xfer.core.run_status import recorded
from xfer.plan.label_task import refuse_for_labels
from xfer.plan.preflight import check_folder
from xfer.plan.run_dir import make_folder, refuse_taken

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.core.types import Plain


def choose_model(
    specs: Specs, began: float, train: Callable[[Specs], Any]
) -> tuple[Path, Plain, Plain | None]:
    """Choose as ``specs`` ask for, and ``train`` the winner by an ordinary run.

    ``began`` is a reading of :func:`time.perf_counter`, from which the minutes count. Returns the
    folder of the choice, nothing in place of a plan, and ``result.json`` of the model; without
    stages the price list is all. Raises CombinationError where the minutes do not suffice, and
    whatever the model's run raises.
    """
    from xfer.sweep.choosing.outcome import last_lines, write
    from xfer.sweep.choosing.session import Session, announce

    refuse_for_labels(specs)
    refuse_taken(specs)
    if specs.stages:
        check_folder(Path(specs.run_dir or "outputs").expanduser())
    session = Session.of(specs, began)
    with working("pricing the candidates"):
        session.prepare()
    announce(session)
    session.refuse_none()
    if not specs.stages:
        return Path(), {}, None
    folder = make_folder(replace(specs, experiment="choose"))
    with recorded(folder):
        write_text(folder / "config.yaml", yaml_text(specs.config))
        session.choose(folder)
        try:
            session.finish(folder, train)
        finally:
            open_log(folder)  # the model's run has closed it
            write(session, folder)  # also where the time ended before the model was finished
        session.judge(0.0)
        facts = write(session, folder)
    log.info(last_lines(facts, folder), extra=LINES)
    return folder, {}, session.facts
