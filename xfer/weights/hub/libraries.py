"""The weights that timm and torchvision publish for their own networks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.core.download import WEIGHTS, fetch
from xfer.core.errors import ConfigError, OutputError, WeightsError, XferError, closest
from xfer.core.files import file_sha256
from xfer.core.types import InputSpec, Plain
from xfer.data.preprocess import of_timm, of_torchvision
from xfer.weights.content import Content
from xfer.weights.formats.read import read
from xfer.weights.hub import huggingface, imagenet

if TYPE_CHECKING:
    from xfer.core.types import StateDict

# DenseNet's published files are older than its layers' names; torchvision renames as it loads.
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


@dataclass(frozen=True)
class Published:
    """Weights under the network's names, and what their publisher says of them.

    ``pinned`` are the source arguments that fetch these very weights again.
    """

    content: Content
    origin: str
    sha256: str
    input: InputSpec
    has_imagenet_classes: bool
    pinned: Plain = field(default_factory=dict)


@contextmanager
def named(origin: str) -> Iterator[None]:
    """Let an error about a file of a cache name what the file was fetched as."""
    try:
        yield
    except XferError as error:
        error.where = f"{origin} ({error.where})"
        raise


def of_timm_hub(name: str, tag: str | None, revision: str | None, local: bool) -> Published:
    """timm's weights for ``name``, read and fitted by timm's own functions.

    Raises ConfigError for an unknown ``tag``, WeightsError when the file cannot be had or read.
    """
    full, config = _timm_config(name, tag)
    origin = f"timm:{config.architecture}.{config.tag}" if config.tag else f"timm:{full}"
    facts: Plain = {}
    if config.hf_hub_id:
        usual = ("model.safetensors", "pytorch_model.bin")
        files = (config.hf_hub_filename,) if config.hf_hub_filename else usual
        branch = "main" if revision is None else revision
        address = huggingface.Address(config.hf_hub_id, files, branch)
        file = huggingface.find(address, local)
        path, sha256 = file.path, huggingface.checked_sha256(file.path)
        facts = {"repository": address.repo, "file": file.file, "revision": file.revision}
    else:
        if revision is not None:
            what = "these weights of timm's have no revisions"
            raise ConfigError("source.revision", what, "drop source.revision", 48)
        path = stored(config.url, local)
        sha256 = file_sha256(path)
    return Published(
        Content(f"{path.suffix[1:]}, fitted by timm", _fitted(full, path, origin), facts=facts),
        origin,
        sha256,
        of_timm(config.to_dict()),
        has_imagenet_classes(config),
        {"revision": facts["revision"]} if facts else {},
    )


def _timm_config(name: str, tag: str | None) -> tuple[str, Any]:
    import timm

    stem = name.split(".")[0]
    full = name if tag is None else f"{stem}.{tag}"
    known = timm.list_pretrained(f"{stem}.*")
    if tag is not None and full not in known:
        tags = [entry.split(".", 1)[1] for entry in known]
        raise ConfigError("source.tag", f"timm has no '{full}'", closest(tag, tags), 41)
    if not known:
        what = f"timm publishes no weights for '{name}'"
        raise WeightsError("source", what, "use source=file or source=none", 10)
    return full, timm.get_pretrained_cfg(full)


def has_imagenet_classes(config: Any) -> bool:
    """Whether a pretrained configuration of timm says that its classes are ImageNet-1k's. Its tag
    names the data sets; the number of classes alone would be a guess."""
    return config.num_classes == 1000 and "in1k" in (config.tag or "").split("_")


def _fitted(full: str, path: Path, origin: str) -> StateDict:
    """The state of timm's network after timm loaded ``path`` into it."""
    import timm

    with named(origin):
        if path.suffix != ".safetensors":
            read(path)  # timm's own reader has fewer checks
    overlay = {"file": str(path), "custom_load": False}
    try:
        module = timm.create_model(full, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # whatever the file's content provoked
        with named(origin):
            read(path)
        what = f"timm cannot load its file ({huggingface.brief(error)})"
        raise WeightsError(origin, what, f"delete {path} to fetch it again", 55) from error
    state: StateDict = module.state_dict()
    return state


def of_torchvision_hub(name: str, tag: str | None, local: bool) -> Published:
    """torchvision's weights for ``name``. Raises as :func:`of_timm_hub`."""
    from torchvision import models

    enum = models.get_model_weights(name)
    if tag is not None and tag not in enum.__members__:
        what = f"torchvision has no '{tag}' for {name}"
        raise ConfigError("source.tag", what, closest(tag, enum.__members__), 41)
    weights = enum[tag] if tag else enum.DEFAULT
    path, origin = stored(weights.url, local), f"torchvision:{weights}"
    with named(origin):
        content = read(path)
    names = {_DENSENET.sub(r"\1\2.", old): old for old in content.state}
    return Published(
        Content(content.format, {n: content.state[old] for n, old in names.items()}, renamed=names),
        origin,
        file_sha256(path),
        of_torchvision(weights.transforms()),
        imagenet.lists(weights.meta.get("categories") or ()),
        {"tag": weights.name},
    )


def store() -> Path:
    """The folder where torch.hub keeps files of weights."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def stored(url: str, local: bool) -> Path:
    """A file of torch's own store, fetched when it is missing unless ``local``. The end of its
    name is how its sha256 begins. Raises WeightsError when it cannot be downloaded."""
    path = store() / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    if local:
        raise huggingface.unreachable(path.name, huggingface.NOT_ASKED)
    prefix = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    try:
        fetch(url, path, prefix[1] if prefix else None, WEIGHTS)
    except OutputError:
        raise
    except XferError as error:
        raise huggingface.unreachable(path.name, f"{url} {error.what}") from error
    return path
