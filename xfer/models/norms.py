"""Which parameters belong to normalisation layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Normalisation layers of timm that are not subclasses of torch's.
_OF_TIMM = tuple(
    f"timm.layers.{name}"
    for name in ("norm", "norm_act", "evo_norm", "filter_response_norm", "grn", "inplace_abn")
)


def norm_parameters(net: nn.Module) -> set[str]:
    """Names of the parameters that normalisation layers of torch or timm own."""
    from torch import nn

    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return {
        name
        for path, module in net.named_modules()
        if isinstance(module, kinds) or any(k.__module__ in _OF_TIMM for k in type(module).__mro__)
        for name, _ in module.named_parameters(path, recurse=False)
    }
