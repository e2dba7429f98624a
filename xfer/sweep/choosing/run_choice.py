"""``choose=cached``, top to bottom: price list, choosing, judging, the model, and what is left.

Left are ``choose.json``, a page, an experiment to type, and the last lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from xfer.config.choose import Choice
from xfer.config.help import GROUPS
from xfer.config.specs import Specs
from xfer.config.verbs import shell
from xfer.core.errors import ChoiceError, CommandError, OutputError, printable
from xfer.core.files import read_text, write_json, write_text, yaml_text
from xfer.core.live_line import working
from xfer.core.log import LINES, log, open_log
from xfer.core.protocols import HasTeacher
from xfer.core.run_folder import is_live
from xfer.core.run_status import recorded
from xfer.core.types import Plain
from xfer.plan.multilabel_task import refuse_for_labels
from xfer.plan.preflight import check_folder, make_folder, refuse_taken
from xfer.report.last_lines import named, told_when_stopped
from xfer.sweep.choosing.choice_page import summary, write_page
from xfer.sweep.choosing.halving import Standing
from xfer.sweep.choosing.measure import measure_of
from xfer.sweep.choosing.session import Session, announce
from xfer.sweep.leaderboard.read_sweep import read_facts

_NOT_OF_A_MODEL = ("choose", "sweep", "experiment")
_NAME = "chosen"
_OF_THE_RUN = ("seed", "stages", "tta", "calibration", "certificate")
_PLACES = (("data", "root"), ("data", "file"), ("source", "path"))


def choose_model(
    specs: Specs, began: float, train: Callable[[Specs], Any]
) -> tuple[Path, Plain, Plain | None]:
    """Choose as ``specs`` ask for, and ``train`` the winner by an ordinary run.

    ``began`` is a reading of :func:`time.perf_counter`, from which the minutes count. Returns the
    folder of the choice, nothing in place of a plan, and ``result.json`` of the model; without
    stages the price list is all. Raises CombinationError where the minutes do not suffice, and
    whatever the model's run raises.
    """
    refuse_for_labels(specs)
    choice, several = cast(Choice, specs.choose), specs.task.several
    if choice.by not in ("loss", measure_of(several).key):
        of, other = ("several labels", "map") if several else ("one label", "acc")
        what = f"{choice.by} is no score of images with {of}"
        raise ChoiceError("choose.by", what, f"type choose.by={other}, or choose.by=loss", 0)
    if isinstance(specs.loss, HasTeacher):
        what = "judges by images held out, which the teacher may have been trained on"
        raise CommandError(
            "choose", what, "type loss=cross_entropy without loss.teacher, or choose=none", 36
        )
    try:
        refuse_taken(specs)
    except OutputError as error:
        error.fix = "choose another run.dir, or remove the folder: a choice begins anew"
        raise
    if specs.stages:
        check_folder(Path(specs.run_dir or "outputs").expanduser())
        for folder in _killed(specs):
            log.info(
                f"{printable(folder)} was killed before it ended and stays as it is: this choice "
                "begins anew, and reads the features that were computed from the cache"
            )
    session = Session.of(specs, began)
    with working("pricing the candidates"):
        session.prepare()
    announce(session)
    session.refuse_none()
    if not specs.stages:
        return Path(), {}, None
    folder = make_folder(replace(specs, experiment="choose"))
    with told_when_stopped(folder, resumes=False), recorded(folder):
        write_text(folder / "config.yaml", yaml_text(specs.config))
        session.choose(folder)
        try:
            known = _chosen(session)
            session.finish(folder, lambda specs: train(replace(specs, chosen=known)))
        finally:
            open_log(folder)  # the model's run has closed it
            write(session, folder)  # also where the time ended before the model was finished
        session.judge(0.0)
        facts = write(session, folder)
    log.info(last_lines(facts, folder), extra=LINES)
    return folder, {}, session.facts


def _killed(specs: Specs) -> Iterator[Path]:
    """Where this choice, with the same configuration, was at work when its process was killed."""
    config = yaml_text(specs.config)
    for status in sorted(Path("outputs/choose").glob("*/status.json")):
        facts, config_file = read_facts(status)[0], status.with_name("config.yaml")
        running = facts.get("state") == "running" and not is_live(status.parent)
        if running and config_file.is_file() and read_text(config_file) == config:
            yield status.parent


def facts_of(session: Session) -> Plain:
    """Everything that is known of the choice, JSON-like: what ``choose.json`` holds."""
    halved, clock = session.halved, session.clock
    standings = {s.name: s for s in halved.standings} if halved else {}
    winner = halved.winner.name if halved else None
    return {
        "format": 1,
        "minutes": session.choice.minutes,
        "by": session.choice.by,
        "repeats": session.choice.repeats,
        "seconds": {
            "total": clock.spent,
            "features": session.computed_s,
            "model": session.model_s,
        },
        "candidates": [_row(session, c.name, standings.get(c.name)) for c in session.contenders],
        "winner": winner,
        "runner_up": _runner_up(session),
        "worth": session.worth,
        "model": str(session.model) if session.model else None,
    }


def _chosen(session: Session) -> Plain | None:
    """What the run of the winner says of the choice, as far as it is known before that run."""
    if (halved := session.halved) is None:
        return None
    return {
        "candidates": len(halved.standings),
        f"cv_{session.measure.key}": halved.winner.score,
        "worth": session.worth,
    }


def _row(session: Session, name: str, standing: Standing | None) -> Plain:
    contender = session.contender(name)
    halved, price = session.halved, contender.price
    full = halved.winner.images if halved else 0
    state, problem = "left out", contender.problem
    if standing is not None:
        problem = standing.problem
        state = "finalist" if standing.images == full else f"dropped at {standing.images} images"
        if problem:
            state = "failed"
        elif halved and name == halved.winner.name:
            state = "winner"
    score = standing if standing and not problem else None
    return {
        "name": name,
        "overrides": contender.candidate.overrides,
        "state": state,
        "problem": problem or None,
        "images": standing.images if standing else None,
        f"cv_{session.measure.key}": score.score if score else None,
        "ci95": score.ci95 if score else None,
        "cv_loss": score.loss if score else None,
        "seconds": standing.seconds if standing else None,
        "price": asdict(price) if price else None,
    }


def _runner_up(session: Session) -> Plain | None:
    """What the second of the last round would cost: accuracy or mAP, as both were cross-validated
    on the same folds, images that the one or the other alone got right, where an image has one
    label, and milliseconds an image."""
    halved = session.halved
    if halved is None or len(halved.standings) < 2:
        return None
    first, second = halved.standings[:2]
    if second.problem or second.images != first.images:
        return None
    prices = [session.contender(s.name).price for s in (first, second)]
    ms = prices[1].ms - prices[0].ms if prices[0] and prices[1] else None
    facts = {"name": second.name, session.measure.key: second.score - first.score, "ms": ms}
    if first.right is None:
        return facts
    return {
        **facts,
        "only_winner_right": int((first.right & ~second.right).sum()),
        "only_runner_up_right": int((second.right & ~first.right).sum()),
    }


def experiment_of(specs: Specs, title: str) -> str:
    """The configuration of ``specs`` as an experiment file, every option and value spelt out."""
    groups = [g for g in GROUPS if g not in _NOT_OF_A_MODEL]
    writers = [k for k, v in specs.config["export"].items() if isinstance(v, dict)]
    choices = {**specs.choices, "export": writers or "none"}
    defaults = [{f"override /{group}": choices[group]} for group in groups]
    settings: Plain = {}
    for key, value in specs.config.items():
        if key in groups or key in _OF_THE_RUN:
            settings[key] = _without_targets(value)
    for group, key in _PLACES:
        text = settings[group].get(key)
        if isinstance(text, str) and "://" not in text:  # that of the hub is no file here
            settings[group][key] = str(Path(text).expanduser().absolute())
    return f"# @package _global_\n# {title}\n" + yaml_text({"defaults": defaults, **settings})


def _without_targets(node: Any) -> Any:
    """What the option of a group says itself."""
    if not isinstance(node, dict):
        return node
    return {k: _without_targets(v) for k, v in node.items() if k != "_target_"}


def write(session: Session, folder: Path) -> Plain:
    """Write all that is known into ``folder``."""
    facts, specs = facts_of(session), session.final
    if specs is None:
        raise ValueError("nothing has been chosen")
    title = f"{printable(facts['winner'])}: chosen by xfer choose"
    write_text(folder / "conf" / "experiment" / f"{_NAME}.yaml", experiment_of(specs, title))
    again = shell([f"--config-dir={folder / 'conf'}", f"experiment={_NAME}"])
    facts |= {"command": shell(session.specs.overrides), "experiment": again}
    write_json(folder / "choose.json", facts)
    write_page(folder, facts)
    return facts


def last_lines(facts: Plain, folder: Path) -> str:
    """What is printed at the end; the last line names the folder."""
    seconds, minutes = facts["seconds"]["total"], facts["minutes"]
    left = 60 * minutes - seconds
    tried = facts["worth"] and facts["worth"]["repeats"] >= facts["repeats"]
    why = "everything was tried" if tried else "another draw of the folds would have taken longer"
    early = f": {why}, so it ends earlier" if left > 0.05 * 60 * minutes else ""
    model = named(Path(facts["model"])) if facts["model"] else ""
    lines = [
        *summary(facts),
        f"took {seconds:.0f} s of {60 * minutes:.0f}{early}",
        f"again: {facts['experiment']}",
        f"next: xfer predict {model} IMAGES",
        f"page: {folder / 'choose.html'}",
        f"everything is in {folder}",
    ]
    return "\n".join(map(printable, lines))
