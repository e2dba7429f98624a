"""The names that MindSpore's own networks give the tensors of a network of timm or torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfer.core.errors import ExportError, closest
from xfer.core.protobuf import Malformed
from xfer.weights.mindspore.translate import renamed, shipped, suits, to_torch

if TYPE_CHECKING:
    from torch import nn

    from xfer.core.types import Card

WHERE = "export.mindspore_ckpt.dialect"
_PLAIN = f"type {WHERE}=plain for torch's names with gamma, beta and moving_*, or export=mindir"


def chosen(card: Card, asked: str) -> str:
    """The dialect to write in: ``asked``, or with ``auto`` that of the weights' source, else the
    first that has this architecture. Raises ExportError when there is none."""
    known = shipped()["dialects"]
    library, name = _architecture(card)
    fits = [str(dialect) for dialect, facts in known.items() if suits(facts, library, name)]
    if asked == "auto":
        own = card.compat.get("dialect")
        if own in fits:
            return str(own)
        if not fits:
            what = f"there is no map from {library}'s {name} to names of MindSpore"
            raise ExportError(WHERE, what, _PLAIN, 30)
        return fits[0]
    if asked not in known:
        raise ExportError(WHERE, f"'{asked}' is none", closest(asked, known), 31)
    if asked != "plain" and asked not in fits:
        what = f"'{asked}' are names of {known[asked]['about']}, which {library}'s {name} is not"
        raise ExportError(WHERE, what, f"leave it out, or type {WHERE}=plain", 32)
    return asked


def difference(net: nn.Module, card: Card, dialect: str) -> str:
    """``yes`` when MindSpore's network of those names computes what ``net`` does, else why not."""
    from torch import nn

    facts = shipped()["dialects"][dialect]
    if dialect == "plain":
        return "as far as a network of one's own with these names does"
    if card.compat.get("dialect") != dialect:
        settings = ", ".join(sorted(facts["compat"]))
        return f"no: MindSpore's own, {facts['about']}, has other settings ({settings})"
    behind = dict(net.named_modules()).get("classifier.2")
    if "squeezenet" in dialect and isinstance(behind, nn.Identity):
        return "no: MindSpore's own has a ReLU behind the classifier, which cuts logits below zero"
    return "yes"


def names(net: nn.Module, card: Card, dialect: str) -> dict[str, str]:
    """MindSpore's name by torch's, for every tensor that MindSpore has: counters of batches are
    not among them."""
    from torch import nn

    facts, (library, _) = shipped()["dialects"][dialect], _architecture(card)
    rules = [*facts.get("back_in", {}).get(library, ()), *facts.get("back", ())]
    words = {torch: mindspore for mindspore, torch in shipped()["suffixes"].items()}
    norms = nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm
    normed = {path for path, layer in net.named_modules() if isinstance(layer, norms)}
    found = {}
    for name in net.state_dict():
        path, _, last = name.rpartition(".")
        if last == "num_batches_tracked":
            continue
        new = renamed(name, rules)
        if path in normed:
            new = new[: -len(last)] + words.get(last, last)
        found[name] = new
    return found


def back(net: nn.Module, found: list[str]) -> dict[str, str]:
    """Torch's name by MindSpore's: those of the first dialect whose load map makes of ``found``
    the names of ``net``. Raises Malformed when none does."""
    want = {name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    for dialect in shipped()["dialects"]:
        for library in ("timm", "torchvision"):
            made = to_torch(found, dialect, library)
            if len(made) == len(want) and set(made.values()) == want:
                return made
    raise Malformed(f"its {len(found)} names do not become the network's")


def _architecture(card: Card) -> tuple[str, str]:
    """Library and name of the backbone; a class of the user's own is no library that has maps."""
    library = str(card.backbone["_target_"]).removeprefix("xfer.models.backbone.").lower()
    return library, str(card.backbone.get("name", ""))
