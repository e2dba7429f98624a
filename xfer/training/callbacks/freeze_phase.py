"""The phases of a fit: each is entered in time, audited at both ends, and proved to have kept what
it froze."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
from torch.optim.lr_scheduler import LambdaLR

from xfer import freeze
from xfer.core.errors import XferError
from xfer.core.files import write_json
from xfer.core.log import log
from xfer.core.types import Plain
from xfer.training.callbacks.progress import History
from xfer.training.distributed.strategy import PhaseDdp
from xfer.training.features.feed import Feed

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from xfer.plan.plan import Plan
    from xfer.training.module import Classifier


class Phases(pl.Callback):
    """Enters the phases of the freeze policy and leaves ``freeze_proof.json``.

    Its state is in the resume file, so a run that goes on is in the same phase and is held to the
    same hashes. ``feed`` gives each phase its images, or their features.
    """

    def __init__(self, plan: Plan, folder: Path, history: History, feed: Feed) -> None:
        self.plan, self.proof = plan, folder / "freeze_proof.json"
        self.history, self.feed = history, feed
        self.starts: list[int] = []
        self.before: dict[str, str] = {}
        self.verdicts: list[Plain] = []
        self.audits: list[Plain] = []
        self._entered: int | None = None
        self._unread = set(plan.layout.adapters)

    def state_dict(self) -> Plain:
        """The epochs (from 0) at which phases began, what is known of frozen tensors, and the
        optimizer's groups at the start of each."""
        return {
            "starts": self.starts,
            "before": self.before,
            "verdicts": self.verdicts,
            "audits": self.audits,
        }

    def load_state_dict(self, state: Plain) -> None:
        """Go on with a saved record."""
        self.starts, self.before = list(state["starts"]), dict(state["before"])
        self.verdicts, self.audits = list(state["verdicts"]), list(state["audits"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Enter the phase that the first or the resumed epoch belongs to."""
        self.history.begun = True
        self._turn(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Enter the next phase when its time has come."""
        self._turn(trainer, pl_module)

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: Classifier, optimizer: Optimizer
    ) -> None:
        """See in the first step that every adapter is read. Raises ConfigError."""
        if self._unread:
            freeze.check_read(pl_module.net.named_parameters(), self._unread)
            self._unread = set()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Make the network whole again."""
        self.feed.leave()

    def finish(self, module: Classifier) -> None:
        """Prove the last phase. After the fit rather than at its end, which a run that was killed
        behind its last epoch has behind it. Raises XferError when a tensor moved."""
        self._prove(module)

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        exception: BaseException,
    ) -> None:
        """Make the network whole again."""
        self.feed.leave()

    @property
    def proved(self) -> bool:
        """Whether every tensor kept its hash in every phase that had frozen it."""
        return all(verdict["proved"] for verdict in self.verdicts)

    def _turn(self, trainer: pl.Trainer, module: Classifier) -> None:
        before = self.feed.seconds
        self._move_on(trainer, module)
        self.feed.ready(trainer.current_epoch)
        self.history.exclude(self.feed.seconds - before)

    def _move_on(self, trainer: pl.Trainer, module: Classifier) -> None:
        epoch = trainer.current_epoch
        if not self.starts:
            self.starts = [0]
            self.before = self._hashes(module, 0)
        while self._is_due(len(self.starts), epoch):
            if self._entered is None:
                self._enter(len(self.starts) - 1, trainer, module)
            self._prove(module)
            self.starts.append(epoch)
            self.before = self._hashes(module, len(self.starts) - 1)
        if self._entered != len(self.starts) - 1:
            self._enter(len(self.starts) - 1, trainer, module)

    def _is_due(self, number: int, epoch: int) -> bool:
        if number == len(self.plan.phases):
            return False
        phase = self.plan.phases[number]
        if phase.start is not None:
            return epoch >= phase.start
        assert phase.patience is not None
        best = self.history.best["epoch"] if self.history.best else 0
        return bool(epoch - max(best, self.starts[-1]) >= phase.patience)

    def _enter(self, number: int, trainer: pl.Trainer, module: Classifier) -> None:
        self.feed.leave()
        rates = trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(rates, LambdaLR)
        module.enter(number, rates)
        if isinstance(trainer.strategy, PhaseDdp):
            trainer.strategy.renew(module)
        self._entered, phases = number, self.plan.phases
        audit = self._audit(module)
        name, epoch = phases[number].name, self.starts[-1] + 1
        if len(self.audits) == number:  # not again in the middle of a phase
            self.audits.append({"phase": name, "epoch": epoch, "groups": audit})
        if len(phases) > 1:
            log.info(f"phase {number + 1} of {len(phases)}: {phases[number].name}")
        self.feed.enter(module)
        self.history.last_phase_from = self.starts[-1] if number + 1 == len(phases) else None

    def _audit(self, module: Classifier) -> list[Plain]:
        """The optimizer's groups in the phase that was entered. Raises XferError."""
        assert self._entered is not None
        (optimizer,) = module.trainer.optimizers
        named = list(module.net.named_parameters())
        return freeze.audit(optimizer, named, self.plan.phases, self._entered)

    def _hashes(self, module: Classifier, number: int) -> dict[str, str]:
        frozen = module.frozen_in(number)
        known = {name: own for name, own in module.hashes.items() if name in frozen}
        return known | freeze.hashes(module.net.state_dict(), frozen - known.keys())

    def _prove(self, module: Classifier) -> None:
        """Compare what the phase froze with what it was, and audit the optimizer once more. Raises
        XferError when a tensor moved or the optimizer trains something else."""
        number = len(self.starts) - 1
        after = freeze.hashes(module.net.state_dict(), self.before)
        verdict = freeze.verdict(self.before, after)
        phase = {"phase": self.plan.phases[number].name, "from_epoch": self.starts[-1] + 1}
        self.verdicts.append({**phase, **verdict})
        if module.team.ranks > 1:
            self._compare(module)
        if module.team.leads:
            write_json(self.proof, self._proof())
        if not verdict["proved"]:
            raise XferError(
                "freeze",
                f"a frozen tensor moved during training ({', '.join(verdict['moved'][:3])})",
                "report this bug; freeze_proof.json has the hashes",
                1,
            )
        if self._entered is not None:  # not in a process that has the last epoch behind it
            self._audit(module)

    def _compare(self, module: Classifier) -> None:
        """Raise XferError when the ranks have come to different weights."""
        own = freeze.hashes(module.net.state_dict(), dict(module.net.named_parameters()))
        apart = [name for name in own if len({h[name] for h in module.team.all_gather(own)}) > 1]
        if apart:
            raise XferError(
                "trainer.devices",
                f"the ranks have come to different weights ({', '.join(apart[:3])})",
                "report this bug",
                12,
            )

    def _proof(self) -> Plain:
        """The verdict over the whole fit on what no phase trains, and over each phase."""
        hashes = [verdict["hashes"] for verdict in self.verdicts]
        still = set.intersection(*map(set, hashes))
        whole = freeze.verdict(
            {name: hashes[0][name]["before"] for name in still},
            {name: hashes[-1][name]["after"] for name in still},
        )
        return {**whole, "proved": whole["proved"] and self.proved, "phases": self.verdicts}
