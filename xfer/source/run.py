"""Weights from an earlier xfer run: they bring their classes and input recipe along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xfer.errors import WeightsError
from xfer.snapshot import best_file, read_best
from xfer.storage import file_sha256
from xfer.types import Backbone
from xfer.weights import Weights


@dataclass(frozen=True)
class Run:
    """``path`` of a run folder (its best checkpoint is taken) or of a checkpoint."""

    path: str

    def load(self, backbone: Backbone) -> Weights:
        """The best weights of that run. Raises WeightsError when its backbone is another."""
        folder = Path(self.path).expanduser()
        snapshot, path = read_best(folder), best_file(folder)
        name = snapshot.card.backbone.get("name")
        if name != backbone.name:
            raise WeightsError(
                path,
                f"its backbone is '{name}', not '{backbone.name}'",
                f"type backbone.name={name}",
                20,
            )
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
            facts={"format": "xfer checkpoint"},
        )


@dataclass(frozen=True)
class Shipped:
    """A small checkpoint that comes with xfer; ``experiment=digits_pretrain`` makes it again."""

    name: Literal["digits_0_4"]

    def load(self, backbone: Backbone) -> Weights:
        """As :class:`Run`, with an origin that is the same on every machine."""
        from dataclasses import replace

        file = Path(__file__).with_name(f"{self.name}.ckpt")
        return replace(Run(str(file)).load(backbone), origin=f"xfer:{self.name}")
