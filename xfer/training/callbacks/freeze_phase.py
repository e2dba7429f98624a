"""The phases of a fit: each is entered in time, audited at both ends, and proved to have kept what
it froze."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xfer import freeze
from xfer.core.errors import ConfigError, XferError
from xfer.core.files import write_json
from xfer.core.log import log
from xfer.core.types import Plain

if TYPE_CHECKING:
    from xfer.plan.plan import Plan
    from xfer.training.features.feature_switch import FeatureSwitch
    from xfer.training.module import Classifier


class Phases:
    """Enters the phases of the freeze policy and leaves ``freeze_proof.json``.

    Its state is in the resume file, so that a run that is resumed is in the same phase and is held
    to the same hashes. ``features`` gives each phase its images, or their features.
    """

    def __init__(self, plan: Plan, folder: Path, features: FeatureSwitch) -> None:
        self.plan, self.proof, self.features = plan, folder / "freeze_proof.json", features
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
        """Continue a saved record."""
        self.starts, self.before = list(state["starts"]), dict(state["before"])
        self.verdicts, self.audits = list(state["verdicts"]), list(state["audits"])

    @property
    def last_phase_from(self) -> int | None:
        """The epoch (from 0) at which the last phase began; ``None`` before it has."""
        return self.starts[-1] if len(self.starts) == len(self.plan.phases) else None

    @property
    def proved(self) -> bool:
        """Whether every tensor kept its hash in every phase that had frozen it."""
        return all(verdict["proved"] for verdict in self.verdicts)

    def check_adapters(self, module: Classifier) -> None:
        """See in the first step that every adapter is read. Raises ConfigError."""
        if self._unread:
            freeze.check_read(module.net.named_parameters(), self._unread)
            self._unread = set()

    def enter_due(self, module: Classifier, best: Plain | None) -> None:
        """Enter the phase that the current epoch belongs to; ``best`` is the best epoch so far.
        The phase before it ends with its proof. Raises XferError where a frozen tensor moved."""
        epoch = module.current_epoch
        if not self.starts:
            self.starts = [0]
            self.before = self._hashes(module, 0)
        while self._is_due(len(self.starts), epoch, best["epoch"] if best else 0):
            if self._entered is None:  # of a run that is resumed where the next one begins
                self._enter(module)
            self.prove(module)
            self.starts.append(epoch)
            self.before = self._hashes(module, len(self.starts) - 1)
        self._enter(module)

    def _is_due(self, number: int, epoch: int, best: int) -> bool:
        if number == len(self.plan.phases):
            return False
        phase = self.plan.phases[number]
        if phase.start is not None:
            return epoch >= phase.start
        return epoch - max(best, self.starts[-1]) >= (phase.patience or 0)

    def _enter(self, module: Classifier) -> None:
        """The phase that began last, unless the fit is in it already."""
        number, phases = len(self.starts) - 1, self.plan.phases
        if self._entered == number:
            return
        self.features.leave()
        module.enter(number)
        self._entered = number
        groups = self._audit(module, number)
        name, epoch = phases[number].name, self.starts[-1] + 1
        if len(self.audits) == number:  # not again in the middle of a phase
            self.audits.append({"phase": name, "epoch": epoch, "groups": groups})
        if len(phases) > 1:
            log.info(f"phase {number + 1} of {len(phases)}: {name}")
        self.features.enter(module)

    def _audit(self, module: Classifier, number: int) -> list[Plain]:
        """The optimizer's groups in phase ``number``. Raises XferError."""
        (optimizer,) = module.trainer.optimizers
        named = list(module.net.named_parameters())
        return freeze.audit(optimizer, named, self.plan.phases, number)

    def _hashes(self, module: Classifier, number: int) -> dict[str, str]:
        frozen = module.frozen_in(number)
        known = {name: sha256 for name, sha256 in module.hashes.items() if name in frozen}
        return known | freeze.hashes(module.net.state_dict(), frozen - known.keys())

    def prove(self, module: Classifier) -> None:
        """Compare what the phase froze with what it was, and audit the optimizer once more. Raises
        XferError when a tensor moved or the optimizer trains something else.

        The last phase's turn comes after the fit rather than at its end, which a run that was
        killed after its last epoch does not reach again.
        """
        number = len(self.starts) - 1
        after = freeze.hashes(module.net.state_dict(), self.before)
        verdict = freeze.verdict(self.before, after)
        phase = {"phase": self.plan.phases[number].name, "from_epoch": self.starts[-1] + 1}
        self.verdicts.append({**phase, **verdict})
        if module.group.ranks > 1:
            self._compare(module)
        if module.group.leads:
            write_json(self.proof, self._proof())
        if not verdict["proved"]:
            what = f"a frozen tensor moved during training ({', '.join(verdict['moved'][:3])})"
            if self.plan.specs.callbacks:
                fix = "correct the callback that changes it, or have freeze train it"
                raise ConfigError("trainer.callbacks", what, fix, 21)
            fix = "report this bug; freeze_proof.json has the hashes"
            raise XferError("freeze", what, fix, 1)
        if self._entered is not None:  # else the last epoch was an earlier process's
            self._audit(module, self._entered)

    def _compare(self, module: Classifier) -> None:
        """Raise XferError when the ranks have come to different weights."""
        hashes = freeze.hashes(module.net.state_dict(), dict(module.net.named_parameters()))
        ranks = module.group.all_gather(hashes)
        apart = [name for name in hashes if len({rank[name] for rank in ranks}) > 1]
        if apart:
            what = f"the ranks have come to different weights ({', '.join(apart[:3])})"
            raise XferError("trainer.devices", what, "report this bug", 12)

    def _proof(self) -> Plain:
        """The verdict over the whole fit on what no phase trains, and over each phase."""
        hashes = [verdict["hashes"] for verdict in self.verdicts]
        still = set.intersection(*map(set, hashes))
        whole = freeze.verdict(
            {name: hashes[0][name]["before"] for name in still},
            {name: hashes[-1][name]["after"] for name in still},
        )
        return {**whole, "proved": whole["proved"] and self.proved, "phases": self.verdicts}
