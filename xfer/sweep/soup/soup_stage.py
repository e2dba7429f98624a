"""The stage ``soup``: from the folder of a sweep to a checkpoint, or to the reason for none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.config.verbs import quoted
from xfer.core.errors import SafetyError, SweepError, printable
from xfer.core.files import write_json, write_rows
from xfer.core.live_line import working
from xfer.core.log import LINES, log
from xfer.core.run_folder import BEST, checkpoints
from xfer.core.seeds import derive
from xfer.core.types import Plain, Predictions, Samples
from xfer.data.dataset import part_of
from xfer.evaluation.task import Multilabel
from xfer.report.soup_section import score_name, soup_lines, tried, varied
from xfer.sweep.soup.greedy import (
    Tables,
    Taste,
    Try,
    greedy,
    label_verdict,
    tables_of,
    verdict,
)

if TYPE_CHECKING:
    import torch

    from xfer.config.specs import Specs
    from xfer.plan.plan import Plan
    from xfer.report.inputs import Work
    from xfer.sweep.soup.members import Member

_WITH = ("soup", "evaluate", "predict", "export", "benchmark", "embed", "report")
"""Stages that work on a network, whoever has made it."""


def refuse_soup_in_a_sweep(stages: Sequence[str]) -> None:
    """Raise SweepError where a job of a sweep is to make a soup."""
    if "soup" in stages:
        what = "-m starts several runs, and a soup is made of those of a sweep that has ended"
        raise SweepError("stages", what, "drop -m", 36)


def plan_soup(specs: Specs) -> Plan:
    """The plan of a run whose network is a soup of the jobs in ``sweep.dir``: that of a member's
    checkpoint, which says what the network is, with who takes part.

    Raises SweepError for what does not go with a soup and for a sweep that has none.
    """
    from xfer.plan.make import make_plan
    from xfer.sweep.leaderboard.read_sweep import read
    from xfer.sweep.soup.members import check_images, check_tensors, members_of

    if other := [stage for stage in specs.stages if stage not in _WITH]:
        what = f"a soup takes the place of a fit, and stages has '{other[0]}'"
        raise SweepError("stages", what, "type 'stages=[soup,evaluate,export,report]'", 29)
    if specs.checkpoint.path:
        raise SweepError("checkpoint.path", "a soup makes its own checkpoint", "drop it", 29)
    sweep = read(Path(specs.sweep.dir or "").expanduser())
    members = members_of(sweep)
    check_tensors(members, specs.make)
    plan = make_plan(_with_checkpoint(specs, members[0].folder))
    check_images(members, plan.dataset)
    if plan.dataset is None:
        raise ValueError("a soup without data was planned")
    tables = tables_of(plan.dataset, specs.seed)
    facts: Plain = {
        "sweep": str(sweep.folder),
        "members": [{"job": m.job, "sha256": m.sha256} for m in members],
        "left_out": [
            {"job": job.number, "state": job.state}
            for job in sweep.jobs
            if job.number not in {member.job for member in members}
        ],
        "chosen_on": {"images": tables.chosen_on, "n": len(tables.choosing)},
        "judged_on": {"images": tables.judged_on, "n": len(tables.judging)},
    }
    # What was measured of one member is not true of an average.
    card = replace(
        plan.card,
        source={**plan.card.source, "soup": facts},
        splits={name: plan.dataset.splits[name].sha256 for name in ("train", "val")},
        calibration={},
        certificate=None,
    )
    return replace(plan, card=card)


def _with_checkpoint(specs: Specs, path: Path) -> Specs:
    return replace(specs, checkpoint=replace(specs.checkpoint, path=str(path)))


def make_soup(work: Work) -> None:
    """Average the members, judge the average, and go on with it as the run's network.

    ``soup.json`` and ``soup.csv`` say what was tried, whatever comes of it. Raises SafetyError
    where the soup does not pay.
    """
    from xfer.sweep.leaderboard.read_sweep import read
    from xfer.sweep.soup.members import members_of

    plan = work.plan
    sweep = read(Path(plan.specs.sweep.dir or "").expanduser())
    members = {member.job: member for member in members_of(sweep)}
    if plan.dataset is None:
        raise ValueError("a soup without data was planned")
    network = AveragedNetwork(plan, members, tables_of(plan.dataset, plan.specs.seed))
    with working("soup"):
        tries = greedy(network.alone(), network.taste)
        facts = _facts(network, tries)
    write_json(work.folder / "soup.json", facts)
    write_rows(work.folder / "soup.csv", [_row(row) for row in facts["members"]])
    lines = map(printable, [*tried(facts), *soup_lines(facts)])
    log.info("\n".join(lines), extra=LINES)
    work.soup = facts
    refuse_loss(facts)
    network.write(tuple(facts["jobs"]), checkpoints(work.folder) / BEST)
    work.plan = replace(plan, specs=_with_checkpoint(plan.specs, checkpoints(work.folder) / BEST))
    work.warnings += remarks(facts, members)


class AveragedNetwork:
    """One network, which is filled with a member's weights or with an average of several, and
    asked about images."""

    def __init__(self, plan: Plan, members: dict[int, Member], tables: Tables) -> None:
        from xfer.core.device import device_of
        from xfer.models.restore import open_checkpoint
        from xfer.sweep.soup.averaging import Averages

        self.plan, self.members, self.tables = plan, members, tables
        self.device = device_of(plan.specs.trainer.accelerator)
        make = plan.specs.make
        self.averages = Averages(lambda job: members[job].state(make))
        self.net = open_checkpoint(next(iter(members.values())).folder, make)[0]
        self.reset: frozenset[str] = frozenset()

    def alone(self) -> dict[int, Taste]:
        """What each member is worth on the images that choose."""
        return {job: self.taste((job,)) for job in self.members}

    def taste(self, jobs: tuple[int, ...]) -> Taste:
        """What the average of ``jobs`` is worth on the images that choose."""
        score = _score(self.answers(jobs, self.tables.choosing))
        return Taste(score[score_name(score)[0]], score["loss"])

    def answers(self, jobs: tuple[int, ...], samples: Samples) -> Predictions:
        """The answers of the average of ``jobs``."""
        from xfer.training.inference import answer

        self._fill(jobs)
        return answer(self.plan.specs, self.plan.card, self.net, samples)

    def _fill(self, jobs: tuple[int, ...]) -> None:
        import torch

        from xfer.models.network import fill
        from xfer.sweep.soup.averaging import set_statistics

        state, self.reset = self.averages.of(jobs)
        with torch.no_grad():
            fill(self.net, state)
        if self.reset:
            self.net.to(self.device)
            set_statistics(self.net, self.reset, self._training_batches())

    def _training_batches(self) -> Iterator[torch.Tensor]:
        """The training images as they are evaluated, mixed: those of one class would have a
        variance of their own."""
        from xfer.data.loader import EvalLoader, eval_images

        samples, data = self.plan.split("train"), self.plan.specs.data
        drawn = np.random.default_rng(derive("soup statistics", self.plan.specs.seed))
        mixed = part_of(samples, drawn.permutation(len(samples)))
        size, workers = (data.eval_batch_size, data.workers) if data else (64, 0)
        pictures = eval_images(mixed, self.plan.card.input)
        for batch, _ in EvalLoader(pictures, size, workers, pin=False):
            yield batch.to(self.device)

    def write(self, jobs: tuple[int, ...], path: Path) -> None:
        """The average of ``jobs`` as a checkpoint of this run. Of several labels an image its
        thresholds are chosen anew on the images that choose, unless the members' were given."""
        from xfer.weights.formats.checkpoint_format import Snapshot, identity, write_snapshot

        card, choosing = self.plan.card, self.tables.choosing
        if card.task and card.task["chosen_on"] != "given":
            logits = self.answers(jobs, choosing).logits
            card = replace(card, task=Multilabel().card(logits, choosing.labels, "val"))
        self._fill(jobs)
        source = {**card.source, "soup": {**card.source["soup"], "jobs": list(jobs)}}
        card = replace(card, source=source)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = self.net.state_dict()
        write_snapshot(path, Snapshot(card, state, run=identity(self.plan.facts)))


def _score(answers: Predictions) -> Plain:
    from xfer.evaluation.evaluate import score_of

    score = score_of(answers, used_for_selection=False).to_plain()
    # Nothing of several labels that thresholds decide: those of a soup are chosen last.
    kept = ("map",) if "map" in score else ("acc", "acc_ci95")
    return {key: score[key] for key in ("n", *kept, "loss", "ece")}


def _facts(network: AveragedNetwork, tries: list[Try]) -> Plain:
    """What ``result.json`` and ``soup.json`` say of the soup."""
    plan, members = network.plan, network.members
    jobs, best = tuple(t.job for t in tries if t.joins), tries[0].job
    single = network.answers((best,), network.tables.judging)
    soup, reset = single, frozenset[str]()
    if len(jobs) > 1:
        soup = network.answers(jobs, network.tables.judging)
        reset = network.reset
    if soup.task:
        found = label_verdict(soup, single)
    else:
        found = verdict(*(a.logits.argmax(axis=1) == a.labels for a in (soup, single)))
    scores = {"soup": _score(soup), "best": _score(single)}
    key, least = score_name(scores["soup"])[0], plan.specs.sweep.soup_least
    difference = {k: v for k, v in asdict(found).items() if v is not None}
    difference |= {key: difference.pop("score"), "ci95": list(found.ci95)}
    return {
        **plan.card.source["soup"],
        "members": [_member_facts(members[t.job], t, key) for t in tries],
        "jobs": list(jobs),
        "soup": scores["soup"],
        "best": {"job": best, "folder": str(members[best].folder), **scores["best"]},
        "difference": difference,
        "least": least,
        "pays": len(jobs) > 1 and found.pays(least),
        "batch_norm": {"layers": len(reset), "images": len(plan.split("train")) if reset else 0},
        "epochs_chosen_on_val": any("val" in m.card.splits for m in members.values()),
    }


def _member_facts(member: Member, tried: Try, key: str) -> Plain:
    return {
        "job": member.job,
        "sha256": member.sha256,
        "parameters": member.parameters,
        key: tried.alone.score,
        "loss": tried.alone.loss,
        f"{key}_with": tried.together.score if tried.together else None,
        "loss_with": tried.together.loss if tried.together else None,
        "joins": tried.joins,
    }


def _row(facts: Plain) -> Plain:
    """A member as a row of ``soup.csv``."""
    row = {key: value for key, value in facts.items() if key not in ("parameters", "sha256")}
    return {**row, "parameters": varied(facts["parameters"])}


def refuse_loss(facts: Plain) -> None:
    """Raise SafetyError where the soup does not pay, with what to use instead."""
    if facts["pays"]:
        return
    best, (low, high) = facts["best"], facts["difference"]["ci95"]
    key, _ = score_name(facts["soup"])
    use = f"use that one: xfer predict {quoted(best['folder'])} IMAGES"
    if len(facts["jobs"]) < 2:
        how = "is as accurate" if key == "acc" else "ranks as well"
        what = f"no average with another member {how} as job {best['job']} alone"
        raise SafetyError("soup", what, use, 40)
    least = math.ceil(100 * low - 1) / 100  # below the end itself
    what = (
        f"does not pay: {100 * facts['difference'][key]:+.1f} points against job {best['job']} "
        f"alone on {facts['difference']['n']} images, 95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}, which does not lie above {100 * facts['least']:+.1f}"
    )
    raise SafetyError("soup", what, f"{use}; or type sweep.soup_least={least:g}", 40)


def remarks(facts: Plain, members: dict[int, Member]) -> list[str]:
    """What a reader of the numbers must know."""
    lines = []
    if facts["epochs_chosen_on_val"] and facts["judged_on"]["images"] != "test":
        lines.append(
            "soup: the epoch of each member was chosen on all of val, the half that judges among "
            "it, so that both scores are somewhat optimistic; data with a split test has none of it"
        )
    if any(member.card.calibration for member in members.values()):
        lines.append("soup: the members were calibrated, and an average is not")
    if any(member.card.certificate for member in members.values()):
        lines.append("soup: the members' certificates do not hold for an average, which has none")
    return lines
