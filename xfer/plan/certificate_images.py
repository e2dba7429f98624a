"""Which images a certificate will be fitted on, whether they are enough, and what the plan says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfer.core.certificate import FittedOn
from xfer.core.errors import ColumnError, CombinationError
from xfer.core.protocols import Certifies
from xfer.core.types import Card, Dataset, Plain
from xfer.evaluation.conformal import (
    having_labels,
    in_words,
    largest_coverage,
    one_view_words,
    smallest_n,
)
from xfer.models.head import Knn, Prototype

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.freeze import Layout
    from xfer.models.network import Parts

_WORDS = {"cv": "training images, held out in folds", "val": "validation images"}


def certificate_facts(
    specs: Specs, dataset: Dataset | None, card: Card, parts: Parts, layout: Layout
) -> Plain | None:
    """What ``plan.json`` says: ``coverage``, ``by_class``, ``fitted_on`` and ``n``, and by the
    input of which ``layers`` is told what is unlike; of a checkpoint its certificate's. ``None``
    where there is none."""
    if card.certificate is not None:
        facts = card.certificate.to_plain()
        return {key: facts[key] for key in ("coverage", "by_class", "fitted_on", "n", "layers")}
    promise = specs.certificate
    planned = not specs.stages or "fit" in specs.stages
    if promise.coverage is None or not planned or dataset is None or specs.checkpoint.path:
        return None
    fitted_on, n, _ = _counts(specs, dataset)
    layers = _layers(parts, layout, card.input.size)
    return {**vars(promise), "fitted_on": fitted_on, "n": n, "layers": layers}


def _layers(parts: Parts, layout: Layout, size: tuple[int, int]) -> list[str] | None:
    """The layers that the fit will look at, found on a network without weights; ``None`` where
    there are none, and of a head that holds images."""
    from xfer.evaluation.certificate_answers import layer_paths
    from xfer.models.network import empty

    if isinstance(parts.head, Knn | Prototype):
        return None
    return list(layer_paths(empty(parts).eval(), layout, size)) or None


def check_certificate(specs: Specs, dataset: Dataset | None) -> None:
    """Raise CombinationError for a coverage that the images are too few to certify, ColumnError
    where a class would have the name of its column."""
    coverage, by_class = specs.certificate.coverage, specs.certificate.by_class
    if coverage is None or dataset is None:
        return
    if "unlike" in dataset.classes:
        what = "adds the column p_unlike to tables, and so does the class 'unlike'"
        fix = "type certificate.coverage=null, or call the class otherwise in the data"
        raise ColumnError("certificate.coverage", what, fix, 0)
    fitted_on, n, counts = _counts(specs, dataset)
    least, needed = min(counts, key=lambda name: counts[name]), smallest_n(coverage)
    n = counts[least] if by_class else n
    if n >= needed:
        return
    of = " with a label" if specs.task.several else ""
    of, has = (" of each class", f"of '{least}' ") if by_class else (of, "")
    what = f"{coverage:g} asks for {needed} {_WORDS[fitted_on]}{of}, and {has}there are {n}"
    fix = f"type certificate.coverage={largest_coverage(n):g}, or give more images"
    if not largest_coverage(n):
        fix = "type certificate.by_class=false" if by_class else "drop it, or give more images"
    raise CombinationError("certificate.coverage", what, fix, 19)


def _counts(specs: Specs, dataset: Dataset) -> tuple[FittedOn, int, dict[str, int]]:
    """How many images the fit will have answered without having seen them, and those of each class;
    with several labels an image, of those that have one."""
    solves, task = specs.optim.solves, specs.task
    samples = dataset.splits.get("train" if solves else "val")
    each = task.counts(samples.labels, len(dataset.classes)) if samples else [0]
    if solves and not task.several:  # an image alone in its class is in every fold's fit
        each = [count if count > 1 else 0 for count in each]
    n = sum(each)
    if task.several and samples:
        n = int(having_labels(samples.labels).sum())
    return "cv" if solves else "val", n, dict(zip(dataset.classes, each, strict=bool(samples)))


def unlike_line(facts: Plain, made: bool) -> str:
    """By what is told how unlike the training images a picture is, why, and what leaves it out;
    where the certificate has been ``made``, the layers alone."""
    if not (layers := facts["layers"]):
        return "no p_unlike: the head has no layer of weights whose input could be looked at"
    by = f"p_unlike looks at what enters {', '.join(layers)}"
    if made:
        return f"{by}, as the checkpoint has it"
    why = "earlier stages tell apart what the network was not taught to"
    why = why if len(layers) > 1 else "no earlier stage has a layer whose input could be looked at"
    return f"{by}: {why}; certificate.coverage=null leaves it out, and the sets"


def certificate_line(facts: Plain, specs: Specs, also_chosen: bool) -> str:
    """The same for people: what is promised, by which images, and which files will say it.
    ``also_chosen`` where the best epoch is chosen on those images too."""
    several, exports = specs.task.several, not specs.stages or "export" in specs.stages
    views = one_view_words(specs.tta) if specs.tta != "none" else ""
    if views and not exports:
        return views
    line = f"prediction sets with {in_words(facts['coverage'], facts['by_class'], several)}, by "
    line += f"{facts['n']:,} {'labelled ' * several}{_WORDS[facts['fitted_on']]}"
    if also_chosen and facts["fitted_on"] == "val":
        line += ", which also choose the best epoch"
    if not exports:
        return line
    whole = [w.file for w in specs.export.writers if isinstance(w, Certifies)]
    bare = [w.file for w in specs.export.writers if not isinstance(w, Certifies)]
    line += f"; {'in' if views else 'also in'} {', '.join(whole)}" if whole else ""
    line += f"; the network alone in {', '.join(bare)}" if bare else ""
    return line + (f"; of the answers here {views}" if views else "")
