"""The training step as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from xfer import freeze
from xfer.core.checksum import over, whole
from xfer.core.errors import DivergedError
from xfer.core.seeds import derive
from xfer.core.standardize import Standard, to_plain
from xfer.training import optimizer_restore
from xfer.training.distributed.group import ALONE, ProcessGroup
from xfer.training.distributed.regroup import count_pieces, count_whole, losses_of, track
from xfer.training.distributed.strategy import PhaseDdp
from xfer.training.ema import Ema
from xfer.training.head_input import Standardized
from xfer.training.multilabel_losses import mixed
from xfer.training.nan_guard import NanGuard, norm, place
from xfer.training.teacher import Softened
from xfer.weights.formats.checkpoint_format import FORMAT, identity

if TYPE_CHECKING:
    from xfer.core.types import Card, Plain, StateDict
    from xfer.data.sampler import EpochSampler
    from xfer.plan.plan import Plan


class Classifier(pl.LightningModule):
    """Trains ``net`` as ``plan`` says, phase by phase; ``frozen`` is what never moves in any,
    and has these ``hashes``.

    Frozen modules stay in inference mode. ``cut`` says that the net takes features, not images.
    """

    cut = False

    def __init__(
        self,
        net: nn.Module,
        plan: Plan,
        group: ProcessGroup = ALONE,
        standard: Standard | None = None,
        mirrored: Plain | None = None,
    ) -> None:
        super().__init__()
        self.mirrored = mirrored or {}
        self.standardized = Standardized(net, standard or {})
        self.net, self.plan, self.group = net, plan, group
        self.pieces = group.share._replace(begun=plan.specs.begun_ranks).pieces
        train, classes = plan.split("train").labels, len(plan.card.classes)
        self.loss = plan.specs.task.loss(plan.specs.loss, train, classes)
        self.task: Plain = {}
        # Of several labels what is known is mixed as well.
        self.mix = plan.specs.augment.mix(classes * (1 + plan.specs.task.several))
        self.labels_known = 0
        self.taught_loss: torch.Tensor | float = 0.0
        # The default would leave NaN out of the mean.
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.train_loss.persistent(True)
        self.phase = 0
        freeze.apply(net, plan.phases[0].rows)
        self.frozen = set.intersection(*map(self.frozen_in, range(len(plan.phases))))
        self.hashes = freeze.hashes(net.state_dict(), self.frozen)
        self.fingerprint = over(self.hashes)
        decay, solved = plan.specs.trainer.averages, plan.specs.trainer.head_start == "solved"
        self.ema = Ema(net, list(self.moving()), decay, solved) if decay else None
        self.guard = NanGuard()
        self.scores: dict[str, float] = {}
        self._images: torch.Tensor | None = None
        self._val_batches = 0
        self._answers: list[tuple[torch.Tensor, torch.Tensor]] = []
        # What is divided among ranks must be contiguous.
        self.channels_last = plan.specs.trainer.channels_last and not plan.specs.trainer.shards
        if self.channels_last:
            net.to(memory_format=torch.channels_last)
        if plan.specs.trainer.compile:
            net.compile()
        # Lightning keeps the mode that a module comes with, so the guard must have acted before.
        self.train()

    def frozen_in(self, phase: int) -> set[str]:
        """Names of the tensors that ``phase`` keeps as they are."""
        rows, policy = self.plan.phases[phase].rows, self.plan.specs.freeze
        return freeze.frozen(self.net, rows, policy.batch_norm)

    def enter(self, phase: int) -> None:
        """From the next step on, train what ``phase`` says, at its rates."""
        self.phase = phase
        freeze.apply(self.net, self.plan.phases[phase].rows)
        self.zero_grad(set_to_none=True)
        self.train()
        rates: Any = self.lr_schedulers()
        groups = zip(rates.optimizer.param_groups, rates.base_lrs, rates.lr_lambdas, strict=True)
        for group, base, factor in groups:
            group["lr"] = base * factor(rates.last_epoch)
        if isinstance(self.trainer.strategy, PhaseDdp):
            self.trainer.strategy.renew(self)

    def moving(self) -> StateDict:
        """The net's tensors that training changes."""
        return {k: tensor for k, tensor in self.net.state_dict().items() if k not in self.frozen}

    def train(self, mode: bool = True) -> Classifier:
        """Training mode, but for what is frozen."""
        super().train(mode)
        if mode:
            freeze.hold(self.net, self.plan.specs.freeze.batch_norm)
        return self

    def begin_step(self, batch: int) -> None:
        """Seed dropout and mixing for this step alone."""
        self.guard.check()
        whole, part = self._order.part(batch)
        self.seed_step(self.current_epoch, whole, part)
        if self.pieces > 1:
            track(self.net, tracks=batch % self.pieces == 0)

    @property
    def _order(self) -> EpochSampler:
        order: EpochSampler = self.trainer.train_dataloader.order  # type: ignore[union-attr]
        return order

    def seed_step(self, epoch: int, step: int, part: int = 0) -> None:
        """Make what a part of ``step`` of ``epoch`` draws a function of these and the run's
        seed."""
        own = [part] if part else []  # each has images of its own
        seed = derive("step", self.plan.specs.seed, epoch, step, *own)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss of one batch, which joins the epoch's."""
        loss = self.loss_of(batch)
        self.guard.note(loss, "the training loss", self._in_batch(batch_idx))
        # A value an image: a metric that lets NaN pass forgets the weights it is given.
        self.train_loss.update(loss.detach().expand(len(batch[1])))
        if self._order.share.parts > 1:
            loss = self._weighed(loss, batch_idx)
        return loss

    def _weighed(self, loss: torch.Tensor, batch: int) -> torch.Tensor:
        """This part's mean ``loss``, so that the mean over the parts is the mean over all images
        or, with several labels an image, over all labels that are known; but a teacher's part,
        which is known of every label, over all images."""
        of_images = self._order.weight(batch)
        # Of several pieces every label is known: the plan refuses others.
        if not self.plan.specs.task.several or self.pieces > 1:
            return loss * of_images
        every = self.group.all_reduce_sum(self.labels_known)
        of_labels = self.labels_known * self.group.ranks / max(1, every)
        return loss * of_labels + self.taught_loss * (of_images - of_labels)

    def loss_of(self, batch: Any) -> torch.Tensor:
        """The loss of images (n, 3, h, w) or features (n, size), labels int64 (n,) and, where
        there is a teacher, its logits (n, classes)."""
        images, labels, *taught = self._placed(batch)
        several = self.plan.specs.task.several
        if self.mix is not None:
            images, labels = (
                mixed(self.mix, images, labels) if several else self.mix(images, labels)
            )
        logits = self.net(images)
        if several and self.group.ranks > 1:
            self.labels_known = int((labels >= 0).sum())
            if isinstance(self.loss, Softened):
                self.taught_loss = self.loss.soft(logits, *taught)
        loss: torch.Tensor = self.loss(logits, labels, *taught)
        return loss

    def check_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop before a gradient that is NaN or Inf spoils the weights."""
        if self.plan.specs.trainer.precision == "16-mixed":
            return  # its scaler leaves out such steps
        # Of the optimizer's tensors: a walk through a deep network would cost more than the step.
        tensors = (p for group in optimizer.param_groups for p in group["params"])
        gradients = (p.grad for p in tensors if p.grad is not None)
        batch = self.trainer.fit_loop.batch_idx
        self.guard.note(norm(gradients), "the gradient", self._in_batch(batch))

    def check_weights(self) -> None:
        """Raise DivergedError where a loss, a gradient or a weight is NaN or Inf."""
        self.guard.check()
        if not torch.isfinite(norm(self.moving().values())):
            raise self._diverged("a weight", f"epoch {self.current_epoch + 1}", 6)

    def average(self) -> None:
        """Follow the weights after each optimizer step."""
        if self.ema is not None:
            self.ema.update(self.net, self.global_step)

    def begin_validation(self) -> None:
        """Validate the averaged weights where there are any."""
        if self.ema is not None:
            self.ema.swap(self.net)
        # Moving statistics are those of rank 0, which are saved.
        self.group.broadcast_buffers(self.net)
        # Of the rank that has most.
        self._val_batches = self.group.all_reduce_max(int(sum(self.trainer.num_val_batches)))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Collect the answers; the metrics are computed on the whole split."""
        images, labels = self._placed(batch)
        if self.plan.specs.trainer.shards:
            self._images = images
        # As evaluation computes it, so that the best value is the score of the same weights.
        with torch.autocast(self.device.type, enabled=False):
            self._answers.append((self.net(images).float().cpu(), labels.cpu()))

    def _answer_alike(self) -> None:
        """Where the ranks divide the network, have each run it as often as any other: what one
        computes with lies on all of them, and some had a batch less."""
        if self._images is not None:
            for _ in range(self._val_batches - len(self._answers)):
                self.net(self._images)
        self._images = None

    def score(self) -> None:
        """Compute every metric of the split, as ``val_<name>`` in ``scores``."""
        self._answer_alike()
        # Each rank's part follows that of the one before, as the split has them.
        answers = chain.from_iterable(self.group.all_gather(self._answers))
        logits, labels = (torch.cat(parts) for parts in zip(*answers, strict=True))
        self._answers.clear()
        # Kept here rather than logged: Lightning's logged values are rounded to float32.
        task, given = self.plan.specs.task, (logits.numpy(), labels.numpy())
        values = task.values(*given, self.plan.specs.metrics)
        self.scores = {f"val_{name}": v for name, v in values.items()}
        if not math.isfinite(self.scores["val_loss"]):
            raise self._diverged("the validation loss", f"epoch {self.current_epoch + 1}", 5)
        self.task = task.card(*given, "val")

    def end_validation(self) -> None:
        """Back to the weights that train."""
        if self.ema is not None:
            self.ema.swap(self.net)

    def epoch_loss(self) -> float:
        """The mean training loss of the epoch, over images; resets it. Raises DivergedError."""
        self.guard.check()
        value = float(self.train_loss.compute())
        self.train_loss.reset()
        return value

    def _in_batch(self, batch: int) -> Callable[[str], DivergedError]:
        def error(what: str) -> DivergedError:
            names = self.plan.split("train").names
            return self._diverged(what, place(self._order, batch, names), 4)

        return error

    def _diverged(self, what: str, where: str, number: int) -> DivergedError:
        rate = max(group["lr"] for group in self.optimizers().param_groups)  # type: ignore[union-attr]
        text = f"{what} is NaN or Inf in {where}, at learning rate {rate:g}"
        fix = "lower optim.lr, or set trainer.clip_norm=1"
        return DivergedError("optim.lr", text, fix, number)

    @property
    def card(self) -> Card:
        """The plan's card, with what the last validation says of the task, unless the folds of a
        cross-validation have said it."""
        return replace(self.plan.card, task=self.plan.card.task or self.task)

    def best_state(self) -> StateDict:
        """The net's moving tensors for raw input of the head, averaged where an average is
        kept. Every rank must ask where they divide the network."""
        averaged = self.ema.shadow if self.ema is not None else {}
        state = {name: averaged.get(name, whole(t)) for name, t in self.moving().items()}
        return self.standardized.folded(state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains, the fingerprint of the rest, and what explains the file."""
        left_out = {f"net.{name}" for name in self.frozen}
        checkpoint["state_dict"] = {
            k: v for k, v in checkpoint["state_dict"].items() if k not in left_out
        }
        checkpoint["ema"] = None if self.ema is None else dict(self.ema.shadow)
        checkpoint["standard"] = to_plain(self.standardized.standard)
        checkpoint["mirroring"] = self.mirrored
        if self.group.ranks > 1:
            checkpoint["train_loss"] = self.group.all_gather(self.train_loss.state_dict())
        count_whole(checkpoint, self.pieces)
        checkpoint["xfer"] = {
            "format": FORMAT,
            "card": self.plan.card.to_plain(),
            "progress": {"epoch": self.current_epoch + 1, "step": self.global_step},
            "frozen": self.fingerprint if self.frozen else None,
            "run": identity(self.plan.facts),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete the state with the frozen tensors that the run's source gave."""
        state = self.net.state_dict()
        checkpoint["state_dict"] |= {f"net.{name}": state[name] for name in self.frozen}
        own = {k: checkpoint["state_dict"][f"train_loss.{k}"] for k in self.train_loss.state_dict()}
        sums = losses_of(checkpoint.get("train_loss", [own]), self.group.rank, self.group.ranks)
        checkpoint["state_dict"] |= {f"train_loss.{k}": v for k, v in sums.items()}
        count_pieces(checkpoint, self.pieces)
        if self.ema is not None:
            self.ema.load(checkpoint["ema"], checkpoint["global_step"])

    def configure_optimizers(self) -> Any:
        """The optimizer over everything that will ever train, and its rates by step and phase."""
        specs = self.plan.specs
        multiples = freeze.ever(self.plan.phases)
        optimizer = specs.optim.build(specs.optim.groups(self.net, multiples))
        if self.plan.optimizer_state is not None:
            optimizer_restore.load(
                optimizer, dict(self.net.named_parameters()), self.plan.optimizer_state
            )
        steps, total = self.plan.steps_per_epoch, self.plan.total_steps

        def rate(shares: Sequence[float]) -> Callable[[int], float]:
            return lambda step: shares[self.phase] * specs.schedule.factor(step, steps, total)

        schedule = LambdaLR(optimizer, [rate(g["phases"]) for g in optimizer.param_groups])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _placed(self, batch: Any) -> tuple[torch.Tensor, ...]:
        images, *rest = batch
        if self.channels_last and not self.cut:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, *rest
