"""One run, top to bottom: plan, fit, evaluate, predict, export, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.config.specs import ModelFile, Specs
from xfer.core.errors import ConfigError, XferError, printable
from xfer.core.files import file_sha256, write_json, write_text, yaml_text
from xfer.core.live_line import working
from xfer.core.log import LINES, close_log, log, open_log
from xfer.core.run_folder import run_of
from xfer.core.run_status import recorded
from xfer.core.signals import heeded
from xfer.core.types import Plain, Predictions, Samples
from xfer.core.world import launched, restarted
from xfer.data.pack import pack
from xfer.data.tta import tta_words
from xfer.models.head import Knn, Prototype
from xfer.plan.make import make_plan
from xfer.plan.preflight import check_folder, check_space, make_folder, refuse_taken, write_plan
from xfer.plan.resume import Earlier, check_same, choose, resume_file
from xfer.plan.table import brief, table
from xfer.report.audit_page import audit
from xfer.report.inputs import Work
from xfer.report.last_lines import last_lines, told_when_stopped
from xfer.report.logger_files import attach
from xfer.report.prediction_page import answer_page
from xfer.report.side_stages import benchmark, embed, find_rate, refuse_late, worth
from xfer.sweep.fold_jobs import before_fit, check_launcher
from xfer.sweep.soup.soup_stage import make_soup, plan_soup
from xfer.training.distributed.launch import leading, next_run
from xfer.training.fit_health import saturation, terms, warn, warnings_of

if TYPE_CHECKING:
    from torch import nn

    from xfer.plan.plan import Plan
    from xfer.report.live import LivePage
    from xfer.training.callbacks.progress import History
    from xfer.training.distributed.rendezvous import Lead
    from xfer.training.fit_result import FitResult

_NEED_NET = {"evaluate", "predict", "export", "benchmark", "embed"}


@dataclass(frozen=True)
class Result:
    """What a run left: its folder, ``plan.json`` and, when it worked, ``result.json`` as facts."""

    folder: Path
    # Thousands of lines, which nobody wants in a notebook whose cell ends with the result.
    plan: Plain = field(repr=False)
    facts: Plain | None = field(repr=False)


def run(specs: Specs) -> Result:
    """Do what ``specs`` ask for, in a folder of its own. Raises XferError."""
    next_run()
    if specs.trainer.ranks > 1:
        # torch is still to be imported: without its remarks on how gradients are averaged.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with heeded():
        world = launched()
        if world and world.rank > 0:
            from xfer.training.distributed.rank import follow

            return Result(follow(world), {}, None)
        with leading():
            return _run(specs)


def _run(specs: Specs) -> Result:
    began = time.perf_counter()
    open_log(None)
    try:
        if done := _without_plan(specs, began):
            return done
        # A job that its launcher has begun again resumes in its own folder, unasked.
        resume = specs.checkpoint.resume or ("auto" if specs.run_dir and restarted() else None)
        earlier = choose(resume, specs.config, Path("outputs") / specs.experiment, specs.run_dir)
        if earlier and earlier.finished and specs.redraws:
            from xfer.report.redraw import redraw

            return Result(earlier.folder, {}, redraw(specs, earlier.folder))
        if earlier and earlier.finished:
            log.info(f"{earlier.folder} is finished: nothing to do")
            return Result(earlier.folder, {}, None)
        if earlier is None:  # a folder that is taken, or cannot be made, is an error early
            refuse_taken(specs)
            if specs.stages or specs.run_dir:
                check_folder(Path(specs.run_dir or "outputs").expanduser())
        specs = replace(specs, begun=earlier.begun if earlier else None)
        with working("planning"):
            plan = (plan_soup if "soup" in specs.stages else make_plan)(specs)
        refuse_late(plan)
        if earlier:
            check_same(earlier, plan.facts)
        else:
            check_launcher(plan)
        log.info(brief(plan) if specs.stages else table(plan), extra=LINES)
        if not earlier and (done := _without_folder(specs, plan, began)):
            return done
        folder = earlier.folder if earlier else make_folder(specs)
        told = nullcontext() if specs.chosen else told_when_stopped(folder, resumes=True)
        with told, recorded(folder, resumes=earlier is not None):
            check_space(plan, folder)
            write_plan(plan, folder)
            work = Work(plan, folder, time.perf_counter() - began, began)
            result = _stages(work, earlier) if specs.stages else None
        log.info(last_lines(work), extra=LINES)
        return Result(folder, plan.facts, result)
    finally:
        close_log()


def _without_plan(specs: Specs, began: float) -> Result | None:
    """What is made of other runs or of an exported file; ``None`` for any other run."""
    if specs.choose.chooses:
        from xfer.sweep.choosing.run_choice import choose_model

        return Result(*choose_model(specs, began, _run))
    if "leaderboard" in specs.stages and specs.sweep.dir is not None:
        return _leaderboard(specs, specs.sweep.dir)
    if "compare" in specs.stages:
        return _compare(specs)
    if "pack" in specs.stages:
        return Result(pack(specs.data, **vars(specs.packing), several=specs.task.several), {}, None)
    return _predict_alone(specs, specs.predict_with, began) if specs.predict_with else None


def _leaderboard(specs: Specs, sweep: str) -> Result:
    """The leaderboard of a sweep that has been run. Nothing here imports torch."""
    from xfer.sweep.leaderboard import write

    path = write(Path(sweep).expanduser(), specs.compose)
    log.info(f"leaderboard: {path}")
    return Result(path.parent, {}, None)


def _compare(specs: Specs) -> Result:
    """Runs that have ended beside each other. Nothing here imports torch."""
    from xfer.report.comparison import compare, read_all, terminal_lines

    refuse_taken(specs)
    runs = read_all(specs.compare_runs)  # before there is a folder, since one may be refused
    log.info("\n".join(terminal_lines(runs)), extra=LINES)
    path = compare(runs, make_folder(replace(specs, experiment="compare")))
    log.info(f"comparison: {printable(path)}")
    return Result(path.parent, {}, None)


def _predict_alone(specs: Specs, file: ModelFile, began: float) -> Result:
    """Predict with an exported file. Nothing here imports torch."""
    from xfer.evaluation.onnx_predict import facts, in_words, open_model, predict
    from xfer.evaluation.predict import write_beside, write_table
    from xfer.report.result import outcome_of_file

    refuse_taken(specs)
    model = open_model(file)
    plan = facts(specs, model)
    log.info(in_words(specs, plan, bool(model.task)), extra=LINES)
    if specs.run_dir is None:
        beside = model.path.parent
        check_folder(beside)
        path, count, times = predict(specs, model, partial(write_beside, folder=beside), began)
        result = outcome_of_file(specs, model.path, count, times, model.certificate)
        return Result(beside, plan, result | {"predictions": str(path)})
    folder = make_folder(specs)
    with recorded(folder):
        write_json(folder / "plan.json", plan)
        write_text(folder / "config.yaml", yaml_text(specs.config))
        _, count, times = predict(specs, model, partial(write_table, folder=folder), began)
        result = outcome_of_file(specs, model.path, count, times, model.certificate)
        write_json(folder / "result.json", result)
    log.info(f"everything is in {printable(folder)}")
    return Result(folder, plan, result)


def _stages(work: Work, earlier: Earlier | None) -> Plain:
    """The straight line, and what it left to the logger, however far it came."""
    from xfer.report.live import live_page

    try:
        with live_page(work) as page:
            result = _line(work, earlier, page)
    except Exception:
        attach(work)
        raise
    if attach(work):
        from xfer.report.write import finish

        result = finish(work)  # with the warning that the logger has failed
    if work.refused:
        raise work.refused
    return result


def _line(work: Work, earlier: Earlier | None, page: LivePage) -> Plain:
    """Each stage reads what the one before left on disk; the report comes after a refusal too."""
    from xfer.report.write import finish
    from xfer.training.distributed.rendezvous import led

    stages = work.plan.specs.stages
    for name, begin in _BEFORE_FIT.items():
        if name in stages:
            page.begin(name)
            begin(work)
    with led(work.plan, work.folder) as lead:
        net = _together(work, resume_file(work.folder) if earlier else None, page, lead)
    for name, stage in _AFTER_FIT.items():
        if net and name in stages and not (name == "benchmark" and work.refused):
            page.begin(name)
            stage(work, net)
    if "worth" in stages:
        page.begin("worth")
        worth(work)
    page.begin("report")
    with working("report"):
        return finish(work, net)


def _together(work: Work, resume: Path | None, page: LivePage, lead: Lead) -> nn.Module | None:
    """The stages of which every rank does a part, and the network that the next ones need."""
    stages = work.plan.specs.stages
    if "fit" in stages:
        page.begin("fit")
        with working("fit"):
            work.fitted = fitted = _fit(work, resume, page, lead)
        work.device = fitted.device
        warn(work.warnings, warnings_of(fitted.rows, terms(work.plan), fitted.best["epoch"]))
        if fitted.logger and fitted.logger.problem:
            work.warnings.append(fitted.logger.problem)
    net = _network(work) if _NEED_NET & set(stages) else None
    for name, stage in (("evaluate", _evaluate), ("predict", _predict)):
        if net and name in stages:
            page.begin(name)
            stage(work, net, lead)
    return net


def _fit(work: Work, resume: Path | None, page: LivePage, lead: Lead) -> FitResult:
    """Solve the head where that is planned; train step by step otherwise, and where it cannot."""
    if work.plan.specs.optim.solves:
        from xfer.training import exact, fill_head

        if isinstance(work.plan.specs.head, Knn | Prototype):
            return fill_head.fit(work.plan, work.folder, lead)
        try:
            return exact.fit(work.plan, work.folder, lead)
        except exact.NotExact as error:
            if work.plan.asked.optim.solves:
                raise ConfigError("optim", f"exact: {error}", "type optim=adamw", 63) from error
            log.warning(f"the head is trained step by step: {error}")
            work.plan = make_plan(work.plan.asked, str(error))
            write_plan(work.plan, work.folder)
    from xfer.training.fit import fit
    from xfer.training.mirroring import heeding
    from xfer.training.oom import recall

    def shows(history: History) -> None:
        page.epoch(history.rows, history.best)

    work.plan, ends, held_out = before_fit(work.plan, work.folder)
    fitted = replace(fit(work.plan, work.folder, resume, ends, shows, lead), cv=held_out)
    work.plan = heeding(recall(work.plan, work.folder), fitted.mirrored)  # as it was trained
    return fitted


def _network(work: Work) -> nn.Module:
    """What is evaluated and exported: the best checkpoint, read back from disk, or the source."""
    from xfer.models.adapters import merge
    from xfer.models.network import assemble
    from xfer.models.restore import open_checkpoint

    plan, path = work.plan, work.checkpoint()
    if path:
        if not work.fitted:
            log.info(f"the network is {printable(path)}, sha256 {file_sha256(path)[:12]}")
        with working("opening the checkpoint"):
            net, card = open_checkpoint(path, plan.specs.make)
        learned = replace(plan.card, certificate=card.certificate, task=card.task)
        work.plan = replace(plan, card=learned)
        return net
    return merge(assemble(plan.parts, plan.state)).eval()


def _evaluate(work: Work, net: nn.Module, lead: Lead) -> None:
    from xfer.evaluation.evaluate import score_of
    from xfer.evaluation.out_of_fold import fitted_on
    from xfer.evaluation.predict import write_logits, write_predictions
    from xfer.evaluation.statistics import apart

    unseen = dict(work.scores)
    for name, samples in work.plan.dataset.splits.items() if work.plan.dataset else ():
        if name == "train":
            continue
        predicted = _answers(work, net, samples, lead)
        seen = {work.plan.card.splits.get(split): split for split in ("val", "train")}
        score = score_of(predicted, samples.sha256 in seen, work.plan.specs.metrics)
        known = fitted_on(work.checkpoint(), name, samples.names, seen.get(samples.sha256))
        warn(work.warnings, [*known, *saturation(name, predicted, work.plan.specs)])
        unseen |= {} if known else {name: score}
        work.predictions[name], work.scores[name] = predicted, score
        write_predictions(predicted, work.folder / f"predictions_{name}.csv")
        if getattr(work.plan.specs.data, "fold", None) is not None:
            write_logits(predicted, work.folder)
        views = f", {tta}" if (tta := tta_words(work.plan.specs.tta)) else ""
        log.info(f"{name}: {score.title} {score.in_words()}, loss {score.loss:.4f}{views}")
    warn(work.warnings, apart(unseen))


def _without_folder(specs: Specs, plan: Plan, began: float) -> Result | None:
    """What leaves no folder of its own unless ``run.dir`` asks for one: the plan alone, and the
    predictions of a checkpoint and files exported from that of a run, which go beside it. ``None``
    for any other run."""
    if specs.run_dir is not None or specs.stages not in ((), ("predict",), ("export",)):
        return None
    work = Work(plan, Path(), time.perf_counter() - began, began)
    if not specs.stages or (checkpoint := work.checkpoint()) is None:
        return None if specs.stages else Result(Path(), plan.facts, None)
    from xfer.report.result import outcome
    from xfer.training.distributed.rendezvous import led

    run = run_of(checkpoint)
    work.folder = run or checkpoint.parent
    if specs.stages == ("export",):
        from xfer.export.finished_run import export_beside

        if run is None:
            return None
        work.exports = export_beside(plan, partial(_network, work), run, checkpoint)
        return Result(run, plan.facts, outcome(work))
    check_folder(work.folder)
    with led(plan, None) as lead:
        path = str(_predict(work, _network(work), lead, beside=True))
    return Result(work.folder, work.plan.facts, outcome(work) | {"predictions": path})


def _predict(work: Work, net: nn.Module, lead: Lead, beside: bool = False) -> Path:
    """Predict what ``predict.input`` names; where the table of it is, ``beside`` earlier ones."""
    from xfer.evaluation.predict import find, summary, warn_of_broken, write_beside, write_table

    spec, broken = work.plan.card.input, list[XferError]()
    samples = find(work.plan.specs.predict_input, spec.range)
    predicted = _answers(work, net, samples, lead, broken)
    warn_of_broken(broken, len(samples))
    write = write_beside if beside else write_table
    path = write(predicted, work.folder, work.plan.specs.predict_format)
    for line in [*summary(predicted, path), *answer_page(work, net, samples, predicted, path)]:
        log.info(line)
    return path


def _answers(
    work: Work, net: nn.Module, samples: Samples, lead: Lead, broken: list[XferError] | None = None
) -> Predictions:
    from xfer.core.device import device_name, device_of
    from xfer.training.inference import answer

    plan, cached = work.plan, work.fitted.cached if work.fitted else None
    if not work.fitted:
        work.device = device_name(device_of(plan.specs.trainer.accelerator))
    return answer(plan.specs, plan.card, net, samples, cached, broken, lead)


def _export(work: Work, net: nn.Module) -> None:
    from xfer.export.stage import hand_over

    if work.fitted:
        work.fitted = replace(work.fitted, cached=None)  # and with it the images of the fit
    try:
        with working("export"):
            folder, path = work.folder / "export", work.checkpoint()
            work.exports = hand_over(work.trained, net, folder, path, work.scores)
    except XferError as error:
        # The fit and its score are no worse for it: they are reported before the run fails.
        work.exports, work.refused = list(error.passed), error
        work.warnings += str(error).splitlines()


_BEFORE_FIT = {"audit": audit, "lr_find": find_rate, "soup": make_soup}
_AFTER_FIT: dict[str, Callable[..., object]] = {
    "export": _export,
    "benchmark": benchmark,
    "embed": embed,
}
"""What each of these stages does with the network, in their order."""
