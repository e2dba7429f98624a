"""What a frozen backbone makes of a run's images: the input of its classifier, whatever the head.

A linear layer stands in place of the head while features are computed, so that every head and
every stage shares what is cached.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import CombinationError
from xfer.core.types import Plain
from xfer.freeze import layout
from xfer.models.head import Linear
from xfer.models.network import assemble, blueprint
from xfer.training.distributed.group import ProcessGroup
from xfer.training.distributed.rendezvous import NOBODY, Lead, SentPlan
from xfer.training.exact import at_rest, features_of, inputs, refuse_no_numbers
from xfer.training.features import AutoFeatures
from xfer.training.features.extract import Extraction, PartlyFrozen
from xfer.training.features.feature_loader import CachedFeatures
from xfer.training.features.feature_switch import cut_within
from xfer.training.features.find_cut import Refusal

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.config.specs import Specs
    from xfer.plan.plan import Plan


@dataclass(frozen=True)
class BackboneFeatures:
    """The input of the classifier by split, float32 (n, d), in the order of the split's images and
    in their evaluation view; a feature map is its mean over the positions. ``seconds`` went into
    them, and ``facts`` is what ``result.json`` says of features."""

    rows: dict[str, npt.NDArray[np.float32]]
    frozen: PartlyFrozen
    cached: CachedFeatures
    seconds: float

    @property
    def facts(self) -> Plain:
        """What ``result.json`` says of features."""
        return self.cached.facts({"hit": None})


def backbone_features(plan: Plan, asker: str, lead: Lead = NOBODY) -> BackboneFeatures:
    """The features of the training and validation images, cached where features are; the ranks of
    ``lead`` compute equal parts.

    ``asker`` is the stage or head that needs them, for messages. Raises CombinationError where
    there can be none, DataError for features that are no numbers.
    """
    began = time.perf_counter()
    path, frozen, cached = _shared(plan, asker, lead.ask(take_part, SentPlan.of(plan), asker))
    rows = {split: inputs(frozen, cached, path, split) for split in ("train", "val")}
    for split, array in rows.items():
        refuse_no_numbers(array, cached.work.splits[split].names)
    return BackboneFeatures(rows, frozen, cached, time.perf_counter() - began)


def take_part(specs: Specs, group: ProcessGroup, sent: SentPlan, asker: str) -> None:
    """Compute the part of one of the other ranks of :func:`backbone_features`."""
    _shared(sent.received(specs), asker, group)


def _shared(
    plan: Plan, asker: str, group: ProcessGroup
) -> tuple[str, PartlyFrozen, CachedFeatures]:
    """The path of the classifier, the network and its features."""
    options = plan.specs.features
    if not isinstance(options, AutoFeatures):
        what = f"works on cached features, and features is {options.use}"
        raise CombinationError(asker, what, "type features=auto", 31)
    bare = with_linear_head(plan)
    heads = bare.layout.heads
    if len(heads) != 1:
        what = f"needs one classifier, and {plan.card.backbone.get('name')} has {len(heads)}"
        raise CombinationError(asker, what, "choose another backbone", 33)
    net = assemble(bare.parts, bare.state)
    group.broadcast_state(net)
    frozen, options = at_rest(bare, net), replace(options, views=1)
    # There are no epochs, and one device uses them.
    trainer = replace(bare.specs.trainer, max_epochs=1, devices=1, nodes=1)
    one = replace(bare, specs=replace(bare.specs, trainer=trainer, begun=None))
    work = Extraction(one, frozen, options, group)
    with group.rank_zero_first():
        cut = cut_within(work, options, answers=True)
    if isinstance(cut, Refusal):
        fix = "choose another backbone, or raise features.max_gb if that is the reason"
        raise CombinationError(asker, f"has no features: {cut.reason}", fix, 33)
    cached = CachedFeatures(work, cut)
    cached.train[None], cached.val[0] = cached.view("train", None), cached.view("val", None)
    return heads[0], frozen, cached


@dataclass(frozen=True)
class HeadInput:
    """What can be read as the input of the classifier at ``path``: of all splits, and of the
    training images in every view that is trained on."""

    frozen: PartlyFrozen
    cached: CachedFeatures
    path: str

    def of(self, split: str, view: int | None = None) -> npt.NDArray[np.float32]:
        """Float32 (n, d) of a split, of train in a view (``None``: as it is evaluated)."""
        return inputs(self.frozen, self.cached, self.path, split, view)

    @property
    def views(self) -> list[npt.NDArray[np.float32]]:
        """The training images in each view that is trained on: as evaluated, if in no other."""
        numbers = [view for view in self.cached.train if view is not None]
        return [self.of("train", view) for view in numbers] or [self.of("train")]


def head_input(plan: Plan) -> HeadInput:
    """The input of the classifier, from the entries that a fit with a linear head is solved on.

    Raises :class:`xfer.training.exact.NotExact` where there is none.
    """
    bare = with_linear_head(plan)
    frozen = at_rest(bare, assemble(bare.parts, bare.state))
    return HeadInput(frozen, features_of(bare, frozen), bare.layout.heads[0])


def source_answers(plan: Plan, entering: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the source's own classifier takes images for whose input of it is ``entering`` (n, d):
    the square roots of its probabilities at temperature 2, float32 (n, source's classes).

    (n, 0) where the plan has no such classifier. The distance of such roots is Hellinger's, which
    small probabilities count in and do not rule.
    """
    if plan.source_head is None:
        return np.empty((len(entering), 0), np.float32)
    weight, bias = (tensor.cpu().numpy() for tensor in plan.source_head)
    answers = entering @ weight.T + bias
    answers -= answers.max(axis=1, keepdims=True)
    roots = np.exp(answers / 4, out=answers)  # of exp(answers / 2), whose sum is to be 1
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    return np.asarray(roots)


def with_linear_head(plan: Plan) -> Plan:
    """``plan`` with one linear layer as the head, and without adapters."""
    head = Linear()
    parts = replace(plan.parts, head=head, head_from_source=False, rows=(), adapters={})
    network = blueprint(parts)[1]
    starts = tuple(f"{path}." for path in network.heads)
    facts: Plain = {"_target_": f"{Linear.__module__}.{Linear.__qualname__}"}
    return replace(
        plan,
        parts=parts,
        card=replace(plan.card, head=facts, adapters={}),
        state={name: t for name, t in plan.state.items() if not name.startswith(starts)},
        network=network,
        layout=layout(network.module, network.heads),
    )
