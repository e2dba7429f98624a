"""The processes that train together, as Lightning is to see them."""

from __future__ import annotations

from typing import Any

from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import DDPStrategy

from xfer.training.distributed.group import ProcessGroup


class RankEnvironment(LightningEnvironment):
    """What Lightning is to know of the group: nobody is to be started, by it or by Slurm."""

    def __init__(self, group: ProcessGroup, devices: int) -> None:
        super().__init__()
        self._node = group.rank // devices
        self._rank, self._ranks, self._local = group.rank, group.ranks, group.local

    @property
    def creates_processes_externally(self) -> bool:
        """The ranks are there already."""
        return True

    def world_size(self) -> int:
        """All of them."""
        return self._ranks

    def set_world_size(self, size: int) -> None:
        """It is known."""

    def global_rank(self) -> int:
        """This one's number."""
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        """This one's number on its node."""
        return self._local

    def node_rank(self) -> int:
        """The number of this one's node: each has as many ranks."""
        return self._node

    def teardown(self) -> None:
        """What the launcher has said holds for the next run of this process, too."""


class PhaseDdp(DDPStrategy):
    """Gradients are averaged over the ranks, of those parameters that train in the phase.

    torch's wrapper takes up what has a gradient when it is made, so each phase makes it anew.
    Unused parameters are looked for because the buckets then keep their places from the first
    step on: a run that resumes adds up in the same order as the one that was not stopped.
    """

    def __init__(self) -> None:
        super().__init__(find_unused_parameters=True)

    def renew(self, module: LightningModule) -> None:
        """Average the gradients of what trains in ``module`` from now on."""
        self.model = module  # the last wrapper takes its hooks with it
        self.model = self._setup_model(module)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Without the wrapper, which exchanges buffers at every call: ranks may have one batch
        more or less than others."""
        module: Any = self.lightning_module
        with self.precision_plugin.val_step_context():
            return module.validation_step(*args, **kwargs)
