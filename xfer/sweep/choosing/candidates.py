"""Which models are candidates: what lies in the local caches, and what is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.config.verbs import override
from xfer.core.errors import CombinationError, ConfigError
from xfer.core.protocols import Undecided
from xfer.models.backbone import index
from xfer.weights.hub.libraries import store
from xfer.weights.source.match_rules import Rules

if TYPE_CHECKING:
    from xfer.config.choose import Choice
    from xfer.config.specs import Specs

_CHOSEN = ("backbone", "source", "head", "freeze")
_LIBRARIES = ("timm", "torchvision")


@dataclass(frozen=True)
class Weighted:
    """A backbone with weights: a short name, and the options and values of the groups ``backbone``
    and ``source`` that make it; none of either is what is configured."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One model to be tried, and the overrides that make a run of it."""

    weighted: Weighted
    head: str
    freeze: str
    plain: bool = False
    """without augmentation, so that all heads of a backbone are fitted to the same features"""

    @property
    def name(self) -> str:
        """What it is called in tables, such as ``resnet18 linear head_only``."""
        return f"{self.weighted.name} {self.head} {self.freeze}"

    @property
    def overrides(self) -> list[str]:
        """As they are typed."""
        groups = {**self.weighted.options, "head": self.head, "freeze": self.freeze}
        if self.plain:
            groups["augment"] = "none"
        chosen = [f"{group}={option}" for group, option in groups.items()]
        return chosen + [override(key, value) for key, value in self.weighted.values.items()]


def listed(specs: Specs, choice: Choice) -> list[Candidate]:
    """Every candidate that ``choice`` names, those of one backbone beside each other.

    Policies that train more than the head come with a linear head alone. Raises CombinationError
    where there is none, or what is chosen has been typed.
    """
    _refuse_typed(specs)
    backbones = list(_backbones(specs, choice))
    if not backbones:
        what = "no weights are in the local caches of timm, torchvision and the hub"
        fix = "type 'choose.sources={BACKBONE: FILE}', or 'choose.backbones=[resnet18]' to fetch it"
        raise CombinationError("choose.backbones", what, fix, 45)
    undecided = isinstance(specs.augment, Undecided)
    return [
        Candidate(weighted, head, freeze, undecided and freeze == "head_only")
        for weighted in backbones
        for freeze in choice.freezes
        for head in (choice.heads if freeze == "head_only" else ("linear",))
    ]


def _refuse_typed(specs: Specs) -> None:
    for key in sorted(specs.explicit):
        group = key.partition(".")[0]
        if group in ("head", "freeze"):
            what = f"{group} is what choose decides"
            fix = f"type 'choose.{group}s=[...]', or drop it"
            raise CombinationError(key, what, fix, 46)
    if (specs.stages and "fit" not in specs.stages) or specs.checkpoint.path:
        key = "checkpoint.path" if specs.checkpoint.path else "stages"
        what = "choose ends with a model that is fitted"
        raise CombinationError(key, what, "drop it, or type choose=none", 46)
    if specs.checkpoint.resume:
        what = "a choice is not resumed: typed again it begins anew, with the features cached"
        raise CombinationError("checkpoint.resume", what, "drop it, or type choose=none", 46)
    if specs.trainer.ranks != 1:
        what = "choose compares candidates on one device"
        raise CombinationError(
            "trainer.devices", what, "type trainer.devices=1 trainer.nodes=1", 46
        )


def _backbones(specs: Specs, choice: Choice) -> Iterator[Weighted]:
    """What is configured, where that was asked for; then named files; then caches or names."""
    experiment = specs.choices.get("experiment") != "default"
    named = {key for key in specs.explicit if key.partition(".")[0] in ("backbone", "source")}
    if experiment or named - {f"source.{rule.name}" for rule in fields(Rules)}:
        option = specs.choices["backbone"]
        yield Weighted(specs.backbone.name if option in _LIBRARIES else option)
    for name, file in choice.sources.items():
        options, values = _architecture(name)
        source = {"source.path": str(Path(file).expanduser())}
        yield Weighted(name, {**options, "source": "file"}, {**values, **source})
    if choice.backbones == "cached":
        yield from _of_timm()
        yield from _of_torchvision()
        return
    for name in choice.backbones:
        options, values = _architecture(name)
        yield Weighted(name, {**options, "source": "hub"}, values)


def _architecture(name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The option and values of ``backbone`` for a model of timm or torchvision. Raises
    ConfigError for a name that neither has."""
    library = "torchvision" if _problem("timm", name) else "timm"
    if unknown := _problem(library, name):
        unknown.where = "choose.backbones"
        raise unknown
    return {"backbone": library}, {"backbone.name": name}


def _of_timm() -> Iterator[Weighted]:
    """Those of timm in the cache of the hub's client: a folder a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = sorted(Path(HF_HUB_CACHE).glob("models--timm--*/snapshots"))
    local = {"source.local_files_only": True}
    for folder in folders:
        name = folder.parent.name.removeprefix("models--timm--")
        files = [*folder.glob("*/model.safetensors"), *folder.glob("*/pytorch_model.bin")]
        if files and not _problem("timm", name):  # else weights of what is no classifier
            options = {"backbone": "timm", "source": "hub"}
            yield Weighted(name, options, {"backbone.name": name, **local})


def _problem(library: str, name: str) -> ConfigError | None:
    """The error of a name that ``library`` does not have."""
    try:
        index.check(library, name)
    except ConfigError as error:
        return error
    return None


def _of_torchvision() -> Iterator[Weighted]:
    """Those of torchvision in the store of torch.hub: a file each set of weights."""
    files = {path.name for path in store().glob("*.pth")}
    if not files:
        return
    from torchvision import models

    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            if weights.url.rsplit("/", 1)[-1] in files:
                options = {"backbone": "torchvision", "source": "hub"}
                values = {"backbone.name": name, "source.tag": weights.name}
                label = name if weights.name.endswith("_V1") else f"{name}.{weights.name}"
                yield Weighted(label, options, {**values, "source.local_files_only": True})


def without_choice(typed: Iterable[str]) -> list[str]:
    """What of the ``typed`` overrides is of every candidate: all but the choosing, what is chosen,
    and where the folder of the choosing is."""
    of_choice = re.compile(r"[+~]*(choose([.=]|$)|run\.dir=)")
    return [text for text in typed if not of_choice.match(text)]
