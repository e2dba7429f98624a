"""Weights from a local file, from an earlier run, or none at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from xfer.config.verbs import override, quoted
from xfer.core.errors import WeightsError
from xfer.core.files import file_sha256
from xfer.core.protocols import Backbone
from xfer.core.run_folder import best_checkpoint
from xfer.weights.content import Weights
from xfer.weights.formats.checkpoint_format import read_best
from xfer.weights.formats.read import read
from xfer.weights.hub.libraries import recognised
from xfer.weights.source.match_rules import Rules


@dataclass(frozen=True)
class File(Rules):
    """``path`` of a file of torch (also Lightning's), safetensors or numpy's .npz; ``key``
    (dotted, such as ``model.ema``) chooses the entry of a torch file that holds the weights."""

    path: str
    """a torch ``.pt``, ``.pth``, ``.bin`` or ``.tar``, a Lightning ``.ckpt``, safetensors or
    numpy ``.npz``; ``squeezenet_file`` has
    ``$XFER_ASSETS/weights/squeezenet1_0_imagenet.safetensors``"""
    key: str | None = None
    """the entry of a torch file that holds the weights, dotted (``model.ema``). ``null`` takes
    the tensors themselves, or the first known entry (``state_dict``, ``model``, ...), an
    average of weights (``model_ema``, ``state_dict_ema``, ...) before them all; the choice is
    in the report"""

    def load(self, backbone: Backbone) -> Weights:
        """The file's tensors. Raises as :func:`xfer.weights.formats.read.read`."""
        path = Path(self.path).expanduser()
        content = read(path, self.key)
        weights = self.weights("file", content, str(path), file_sha256(path))
        return recognised(weights, backbone)


@dataclass(frozen=True)
class Scratch:
    """Random initialisation, seeded by ``seed``."""

    def load(self, backbone: Backbone) -> Weights:
        """No state dict."""
        return Weights(kind="none", state=None)


@dataclass(frozen=True)
class Run:
    """``path`` of a run folder (its best checkpoint is taken) or of a checkpoint."""

    path: str
    """a run folder (its best checkpoint) or a checkpoint of xfer"""

    def load(self, backbone: Backbone) -> Weights:
        """The best weights of that run. Raises WeightsError when its backbone is another."""
        folder = Path(self.path).expanduser()
        snapshot, path = read_best(folder), best_checkpoint(folder)
        theirs, facts = snapshot.card.backbone, {"format": "checkpoint of xfer"}
        name = theirs.get("name")
        named = {f"backbone.{key}": theirs[key] for key in ("name", "args") if theirs.get(key)}
        typed = " ".join(quoted(override(key, value)) for key, value in named.items())
        if name != backbone.name:
            what = f"its backbone is '{name}', not '{backbone.name}'"
            home, _, kind = str(theirs.get("_target_", "")).rpartition(".")
            # xfer's options are called as their classes; one of the user's own has any name.
            other = home == "xfer.models.backbone" and kind != type(backbone).__name__
            library = f"backbone={kind.lower()} " if other else ""
            raise WeightsError(path, what, f"type {library}{typed}", 20)
        if theirs.get("args") and theirs["args"] != getattr(backbone, "args", {}):
            facts["suspect"] = f"its run had other arguments: type {typed}"
        return Weights(
            "run",
            snapshot.state,
            origin=str(path),
            sha256=file_sha256(path),
            classes=snapshot.card.classes,
            input=snapshot.card.input,
            compat=snapshot.card.compat,
            head=snapshot.card.head,
            splits=snapshot.card.splits,
            task=snapshot.card.task,
            facts=facts,
        )


@dataclass(frozen=True)
class Shipped:
    """A small checkpoint that comes with xfer; ``experiment=digits_pretrain`` makes it again."""

    name: Literal["digits_0_4"]
    """the checkpoint that comes with xfer"""

    def load(self, backbone: Backbone) -> Weights:
        """As :class:`Run`, with an origin that is the same on every machine."""
        file = Path(__file__).with_name(f"{self.name}.ckpt")
        return replace(Run(str(file)).load(backbone), origin=f"xfer:{self.name}")
