"""The classes of a run: those of the data, of the source, and how the one becomes the other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xfer.core.errors import (
    ClassNameError,
    CombinationError,
    ConfigError,
    DataError,
    WeightsError,
    closest,
)
from xfer.models.head import Keep, Remap, class_match
from xfer.models.head.class_match import Naming, adopt

if TYPE_CHECKING:
    import torch

    from xfer.config.specs import Specs
    from xfer.core.types import Dataset, Network
    from xfer.models.network import Parts
    from xfer.weights.content import Match, Weights


def joined(
    specs: Specs, dataset: Dataset | None, weights: Weights
) -> tuple[Dataset | None, tuple[str, ...], Parts]:
    """The data in the run's classes, those classes, and the parts of the network over them.

    ``head=keep`` takes the source's classes, every other head the data's. Raises DataError for a
    folder that a kept head does not know, ConfigError when the classes are not to be had.
    """
    from xfer.models.network import Parts

    names, head = weights.classes, specs.head
    known = len(names) if names else None
    if isinstance(head, Keep):
        dataset = _in_source_classes(head, dataset, weights)
        made = specs.make("head", weights.head) if weights.head else head
        classes = _given(names or (dataset.classes if dataset else None))
        parts = Parts(
            specs.backbone, made, len(classes), head_from_source=True, source_classes=known
        )
    else:
        # What is embedded without data has no classes, and needs none.
        unknown = ("unknown",) if set(specs.stages) == {"embed"} else None
        classes = _given(dataset.classes if dataset else names or unknown)
        parts = Parts(specs.backbone, head, len(classes))
    for name in classes:
        if name.encode(errors="ignore").decode() != name:
            what = f"the name of class '{name}' is no UTF-8, and no file could have it"
            raise ClassNameError("data", what, "rename its folder, or write the list as UTF-8", 0)
    if isinstance(head, Remap):
        rows = _remapped(head, classes, weights, ready=specs.answers)
        parts = replace(parts, rows=rows, source_classes=known)
    return dataset, classes, replace(parts, seed=specs.seed, compat=weights.compat)


def source_head(
    weights: Weights, match: Match, network: Network, classes: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weight (source's classes, d) and bias of the layer that the ``weights`` came with for the
    classifier of ``network``, before its head is swapped. ``None`` where that is no single layer,
    and where it may have learned the labels of these images: of a fit of xfer's, or with as many
    ``classes`` as the data has."""
    path, state = network.heads[0], weights.state or {}
    weight, bias = (state.get(f"{match.prefix}{path}.{kind}") for kind in ("weight", "bias"))
    if weight is None or bias is None or weights.splits or len(weight) in (1, classes):
        return None
    layer = network.module.get_submodule(path)
    alike = len(network.heads) == 1 and weight.shape[1:] == getattr(layer, "weight", bias).shape[1:]
    return (weight.flatten(1).float(), bias.float()) if alike else None


def _given(classes: tuple[str, ...] | None) -> tuple[str, ...]:
    if classes is None:
        fix = "give data=... or data.root=DIR"
        raise ConfigError("data", "is needed to know the classes", fix, 84)
    return classes


def _in_source_classes(head: Keep, dataset: Dataset | None, weights: Weights) -> Dataset | None:
    if dataset is None:
        return None
    if weights.classes is not None:
        return adopt(dataset, Naming(weights.classes, weights.synonyms), head.aliases)
    unknown = "the source's class names are not known"
    if head.aliases:
        raise ConfigError("head.aliases", unknown, "give source.classes=FILE or [NAMES]", 28)
    remark = f"{unknown}: its classes are taken to be in the data's order"
    return replace(dataset, remarks=(*dataset.remarks, remark))


def _remapped(
    head: Remap, classes: tuple[str, ...], weights: Weights, ready: bool
) -> tuple[tuple[int, ...], ...]:
    """The rows of each class. ``ready`` when the network is to answer without training."""
    if weights.classes is None:
        what = "head=remap needs the names of the source's classes"
        fix = "give source.classes=FILE, [NAMES] or imagenet"
        raise ConfigError("source.classes", what, fix, 29)
    naming = Naming(weights.classes, weights.synonyms)
    rows = class_match.rows(classes, naming, head.several())
    new = [name for name, members in zip(classes, rows, strict=True) if not members]
    if new and ready:
        what = f"the source has no class for {new[:5]}, so that nothing can be scored untrained"
        raise CombinationError("head", what, "give head.aliases, or add fit to stages", 2)
    return rows


def class_mismatch(
    data: tuple[str, ...], model: tuple[str, ...], where: str
) -> DataError | WeightsError:
    """The error for data whose classes are not the model's, which is at ``where``."""
    extra, missing = sorted(set(data) - set(model)), sorted(set(model) - set(data))
    if not extra and not missing:
        what = "has the same classes in another order"
        return WeightsError(where, what, "train again with this xfer", 41)
    parts = [f"the data lacks {missing[:5]}"] if missing else []
    parts += [f"the data adds {extra[:5]}"] if extra else []
    hint = f"give data with the {len(model)} classes {list(model)[:8]}"
    if extra and missing and (near := closest(extra[0], missing)).startswith("did you mean"):
        hint = near
    return DataError(where, "; ".join(parts), hint, 42)
