"""Fully sharded training: weights, gradients and the optimizer's state are divided among the ranks.

Zhao et al., 2023, as torch's ``fully_shard`` has it. A block's weights are whole on a rank only
while it computes. Files are those that one device writes: what is saved is put together first.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from xfer.core.checksum import whole

_SMALL = 10_000
"""A block of fewer numbers is not worth separate messages."""


class Sharded(DDPStrategy):
    """Each block of the network is divided over all ranks before the optimizer is made.

    Lightning's FSDPStrategy is for CUDA alone, and its ModelParallelStrategy divides nothing
    by itself and reads its files in one piece on every rank.
    """

    def model_to_device(self) -> None:
        """Nothing yet: block by block, so that the device never holds all of it."""

    def configure_ddp(self) -> None:
        """In place of a wrapper."""
        module: Any = self.lightning_module
        shard(module.net, self.root_device, self.world_size)
        module.to(self.root_device)  # buffers and metrics

    def teardown(self) -> None:
        """The weights stay where their ranks can put them together: proofs come after the fit."""
        self.precision_plugin.teardown()
        if self.accelerator is not None:
            self.accelerator.teardown()
        self.checkpoint_io.teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, in the processor's memory; every rank must ask."""
        return {
            name: whole(tensor) for name, tensor in super().lightning_module_state_dict().items()
        }

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As one device has it; every rank must ask."""
        state: Any = super().optimizer_state(optimizer)
        states = {
            number: {name: whole(value) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return {**state, "state": states}

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Divide what is whole in the file as the weights are divided."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            states = {
                number: {
                    name: _divided(value, parameters[number]) for name, value in values.items()
                }
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": states})


def shard(net: nn.Module, device: torch.device, ranks: int) -> None:
    """Divide the weights of ``net`` over ``ranks``, each child of a sequence or list of modules by
    itself where it is not small, and what is left as one."""
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks,))
    net.to(memory_format=torch.contiguous_format)
    several = (nn.Sequential, nn.ModuleList)
    blocks = [b for m in net.modules() if isinstance(m, several) for b in m.children()]
    for block in reversed(dict.fromkeys(blocks)):
        if sum(p.numel() for p in block.parameters()) >= _SMALL:
            fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def _divided(value: Any, parameter: torch.Tensor) -> Any:
    if isinstance(parameter, DTensor) and getattr(value, "shape", None) == parameter.shape:
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value
