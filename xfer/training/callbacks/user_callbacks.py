"""The callbacks of ``trainer.callbacks``: made for a fit, and what of them a resume file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xfer.core.errors import ConfigError

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from xfer.config.specs import Specs
    from xfer.core.types import Plain

_LIGHTNINGS = {
    *("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops"),
    *("optimizer_states", "lr_schedulers", "hparams_name", "hyper_parameters"),
}


def new_callbacks(specs: Specs) -> list[pl.Callback]:
    """One of each, for one fit. Raises ConfigError."""
    return [make() for make in specs.callbacks]


def check_plain(checkpoint: Plain) -> None:
    """Raise ConfigError where a callback put something into a resume file that could not be read
    out of it again, where nothing but numbers, texts and tensors is."""
    for top in checkpoint.keys() - _LIGHTNINGS:
        if problem := _not_plain(checkpoint[top], str(top)):
            what = f"a resume file cannot hold {problem}"
            fix = "save numbers, texts, lists, dicts and tensors alone"
            raise ConfigError("trainer.callbacks", what, fix, 21)


def _not_plain(value: Any, place: str) -> str:
    """What in ``value`` is more than data, and where; nothing where all of it is data."""
    import torch

    if value is None or type(value) in (bool, int, float, complex, str, bytes, torch.Tensor):
        return ""
    if type(value) is torch.nn.Parameter:
        return ""
    if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
        parts = [*value.items()]
        problem = next((p for key in value if (p := _not_plain(key, place))), "")
        return problem or next((p for k, v in parts if (p := _not_plain(v, f"{place}.{k}"))), "")
    if type(value) in (list, tuple, set):
        return next((p for i, v in enumerate(value) if (p := _not_plain(v, f"{place}[{i}]"))), "")
    return f"the {type(value).__name__} at {place}"
