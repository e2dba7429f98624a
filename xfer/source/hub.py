"""Published weights: timm's from the Hugging Face hub, torchvision's from its own store."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xfer.errors import ConfigError, WeightsError, closest
from xfer.preprocess import of_timm, of_torchvision
from xfer.storage import file_sha256
from xfer.types import Backbone
from xfer.weights import Weights

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Hub:
    """The weights that ``backbone``'s own library publishes for it.

    ``tag`` names one of several: for timm the part behind the dot (``a1_in1k``), for torchvision
    the enum member (``IMAGENET1K_V1``); ``None`` is the library's default.
    """

    tag: str | None = None

    def load(self, backbone: Backbone) -> Weights:
        """From the local cache, else from the hub. Raises WeightsError when neither has it."""
        if backbone.library == "timm":
            return _timm(backbone.name, self.tag)
        if backbone.library == "torchvision":
            return _torchvision(backbone.name, self.tag)
        raise ConfigError(
            "source",
            f"no hub holds weights for '{backbone.name}'",
            "use source=file or source=none",
            40,
        )


def _timm(name: str, tag: str | None) -> Weights:
    import timm

    full = name if tag is None else f"{name.split('.')[0]}.{tag}"
    known = timm.list_pretrained(f"{name.split('.')[0]}.*")
    if tag is not None and full not in known:
        tags = [entry.split(".", 1)[1] for entry in known]
        raise ConfigError("source.tag", f"timm has no '{full}'", closest(tag, tags), 41)
    if not known:
        raise WeightsError(
            "source",
            f"timm publishes no weights for '{name}'",
            "use source=file or source=none",
            10,
        )
    config = timm.get_pretrained_cfg(full)
    # The client logs each failed request before it raises; the error below says it once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        module = timm.create_model(full, pretrained=True)
    except Exception as error:  # the hub's client raises many kinds, none of them xfer's bug
        raise _unreachable(full, error) from error
    path = _cached_timm(config)
    # The name alone means the library's default tag of the day: say which that was.
    full = f"{config.architecture}.{config.tag}" if config.tag else full
    return Weights(
        "hub",
        module.state_dict(),
        origin=f"timm:{full}",
        sha256=file_sha256(path) if path else None,
        input=of_timm(config.to_dict()),
    )


def _cached_timm(config: Any) -> Path | None:
    from pathlib import Path

    from huggingface_hub import try_to_load_from_cache

    for name in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
        found = name and try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _torchvision(name: str, tag: str | None) -> Weights:
    from torchvision import models

    enum = models.get_model_weights(name)
    if tag is not None and tag not in enum.__members__:
        raise ConfigError(
            "source.tag",
            f"torchvision has no '{tag}' for {name}",
            closest(tag, enum.__members__),
            41,
        )
    weights = enum[tag] if tag else enum.DEFAULT
    try:
        with warnings.catch_warnings():
            # torch.hub warns of its own progress bar in notebooks.
            warnings.simplefilter("ignore", UserWarning)
            state = weights.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # urllib, ssl and hash errors alike: the weights were not had
        raise _unreachable(str(weights), error) from error
    path = _cached_torchvision(weights.url)
    return Weights(
        "hub",
        {_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in state.items()},
        origin=f"torchvision:{weights}",
        sha256=file_sha256(path),
        input=of_torchvision(weights.transforms()),
    )


# DenseNet's published files are older than its layers' names; torchvision renames as it loads.
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def _cached_torchvision(url: str) -> Path:
    from pathlib import Path

    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _unreachable(what: str, error: Exception) -> WeightsError:
    first = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {first[0][:160] if first else ''}"
    return WeightsError(
        "source",
        f"'{what}' is neither in the cache nor to be had from the hub ({reason})",
        "connect once, or use source=file source.path=FILE",
        11,
    )
