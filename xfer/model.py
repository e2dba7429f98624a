"""The training step as a LightningModule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import nn
from torchmetrics import MeanMetric

from xfer import freeze, metrics, momenta, optim
from xfer.ema import Ema
from xfer.errors import DivergedError, XferError
from xfer.network import frozen_names
from xfer.randomness import derive
from xfer.snapshot import fingerprint

if TYPE_CHECKING:
    from xfer.plan import Plan
    from xfer.types import StateDict


class Classifier(pl.LightningModule):
    """Trains ``net`` as ``plan`` says. Frozen modules stay in inference mode throughout."""

    def __init__(self, net: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.net, self.plan = net, plan
        self.loss = plan.specs.loss.build(plan.train_counts)
        self.mix = plan.specs.augment.mix(len(plan.card.classes))
        # The default would leave NaN out of the mean.
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.train_loss.persistent(True)
        freeze.apply(net, plan.rows)
        self.frozen = frozen_names(net, plan.rows)
        self.fingerprint = fingerprint(
            (n, t) for n, t in net.state_dict().items() if n in self.frozen
        )
        self.ema = (
            Ema(net, self.moving(), decay) if (decay := plan.specs.trainer.ema_decay) else None
        )
        self.found: dict[str, float] = {}
        self._answers: list[tuple[torch.Tensor, torch.Tensor]] = []
        if plan.specs.trainer.channels_last:
            net.to(memory_format=torch.channels_last)
        if plan.specs.trainer.compile:
            net.compile()
        # Lightning keeps the mode that a module comes with, so the guard must have acted before.
        self.train()

    def moving(self) -> list[str]:
        """Names of the net's tensors that training changes."""
        return [name for name in self.net.state_dict() if name not in self.frozen]

    def train(self, mode: bool = True) -> Classifier:
        """Training mode, but for what is frozen."""
        super().train(mode)
        if mode:
            freeze.hold(self.net)
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout and mixing for this step alone."""
        seed = derive("step", self.plan.specs.seed, self.current_epoch, batch_idx)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss of one batch."""
        images, labels = self._placed(batch)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        loss: torch.Tensor = self.loss(self.net(images), labels)
        self.train_loss.update(loss.detach(), len(images))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Follow the weights after each optimizer step."""
        if self.ema is not None:
            self.ema.update(self.net, self.global_step)

    def on_validation_start(self) -> None:
        """Validate the averaged weights where there are any."""
        if self.ema is not None:
            self.ema.swap(self.net)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Collect the answers; the metrics are computed on the whole split."""
        images, labels = self._placed(batch)
        self._answers.append((self.net(images).float().cpu(), labels.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Compute every metric of the split, as ``val_<name>`` in ``found``."""
        logits, labels = (torch.cat(parts) for parts in zip(*self._answers, strict=True))
        self._answers.clear()
        # Kept here rather than logged: Lightning's logged values are rounded to float32.
        self.found = {f"val_{name}": v for name, v in metrics.values(logits, labels).items()}
        if math.isnan(self.found["val_loss"]):
            raise self._diverged("validation logits")

    def on_validation_end(self) -> None:
        """Back to the weights that train."""
        if self.ema is not None:
            self.ema.swap(self.net)

    def epoch_loss(self) -> float:
        """The mean training loss of the epoch, over images; resets it. Raises DivergedError."""
        value = float(self.train_loss.compute())
        self.train_loss.reset()
        if not math.isfinite(value):
            raise self._diverged("training loss")
        return value

    def _diverged(self, what: str) -> DivergedError:
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        return DivergedError(
            "optim.lr",
            f"{what} is NaN or Inf in epoch {self.current_epoch + 1} (learning rate {rate:g})",
            "lower optim.lr, or set trainer.clip_norm=1",
        )

    def check_frozen(self) -> None:
        """Raise XferError when a frozen tensor is not what it was before the first step."""
        state = self.net.state_dict()
        if fingerprint((n, t) for n, t in state.items() if n in self.frozen) != self.fingerprint:
            raise XferError("freeze", "a frozen tensor moved during training", "report this bug", 1)

    def best_state(self) -> StateDict:
        """The net's moving tensors, averaged where an average is kept."""
        state = self.net.state_dict()
        averaged = self.ema.shadow if self.ema is not None else {}
        return {name: averaged.get(name, state[name]) for name in self.moving()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains, and the fingerprint of the rest."""
        left_out = {f"net.{name}" for name in self.frozen}
        checkpoint["state_dict"] = {
            k: v for k, v in checkpoint["state_dict"].items() if k not in left_out
        }
        checkpoint["ema"] = None if self.ema is None else dict(self.ema.shadow)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete the state with the frozen tensors that the run's source gave."""
        own = self.net.state_dict()
        checkpoint["state_dict"] |= {f"net.{name}": own[name] for name in self.frozen}
        if self.ema is not None:
            self.ema.load(checkpoint["ema"], checkpoint["global_step"])

    def configure_optimizers(self) -> Any:
        """The optimizer over everything that will ever train, and its schedule by step."""
        specs = self.plan.specs
        multiples = {row.name: row.lr for row in self.plan.rows}
        optimizer = specs.optim.build(optim.groups(self.net, multiples, specs.optim))
        if self.plan.momenta is not None:
            momenta.load(optimizer, dict(self.net.named_parameters()), self.plan.momenta)
        steps, total = self.plan.steps_per_epoch, self.plan.total_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: specs.schedule.factor(step, steps, total)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _placed(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = batch
        if self.plan.specs.trainer.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels
