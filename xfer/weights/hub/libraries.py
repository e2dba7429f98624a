"""The weights that timm and torchvision publish for their own networks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.config.verbs import override, quoted
from xfer.core.card_schema import recipe_of
from xfer.core.deferred_compiler import compiler_deferred
from xfer.core.download import WEIGHTS, fetch
from xfer.core.errors import (
    ConfigError,
    OutputError,
    RepositoryError,
    WeightsError,
    XferError,
    closest,
    printable,
)
from xfer.core.files import file_sha256, parsed, read_text
from xfer.core.log import log
from xfer.core.read_back import checked
from xfer.core.types import InputSpec, Plain, StateDict
from xfer.data.preprocess import of_timm, of_torchvision
from xfer.weights.content import Content, Weights
from xfer.weights.formats.read import read
from xfer.weights.hub import huggingface, imagenet

if TYPE_CHECKING:
    from xfer.core.protocols import Backbone

_USUAL = ("model.safetensors", "pytorch_model.bin")
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
"""How a library's own file ends in its address: with the beginning of its sha256."""

# DenseNet's published files are older than its layers' names; torchvision renames as it loads.
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


@dataclass(frozen=True)
class Published:
    """Weights under the network's names, and what their publisher says of them.

    ``pinned`` are the source arguments that fetch these very weights again; ``classes`` are known
    of a model that somebody trained, ``task`` of one that gives an image several labels.
    """

    content: Content
    origin: str
    sha256: str
    input: InputSpec
    has_imagenet_classes: bool
    pinned: Plain = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    task: Plain = field(default_factory=dict)


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
        files = (config.hf_hub_filename,) if config.hf_hub_filename else _USUAL
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
    with compiler_deferred():
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


def of_timm_repository(repo: str, revision: str, backbone: Backbone, local: bool) -> Published:
    """The model that timm opens in a repository of the hub, such as an ``export=hub`` that was
    pushed: its ``config.json`` says which architecture, classes and input recipe it is of.

    Raises RepositoryError where ``backbone`` is another one, WeightsError for files that cannot be
    had or read.
    """
    config = huggingface.find(huggingface.Address(repo, ("config.json",), revision), local)
    file = huggingface.find(huggingface.Address(repo, _USUAL, config.revision), local)
    origin = f"hf://{repo}@{config.revision}"
    try:
        said = parsed(read_text(config.path))
        facts = said.get("pretrained_cfg") or said
        names = said.get("label_names") or facts.get("label_names") or ()
        names = checked(tuple[str, ...], names)
        args, architecture = dict(said.get("model_args") or {}), str(said["architecture"])
        # Whoever sends weights sends this along: it is held to what a recipe can be, and where
        # half of one is missing it is not made up.
        told = {**facts, **{key: facts[key] for key in ("input_size", "mean", "std")}}
        recipe = recipe_of(json.dumps(of_timm(told).to_plain()))
        several = said.get("problem_type") == "multi_label_classification"
    except Exception as error:  # whatever the file's content provoked
        what = f"its config.json is none of timm's ({huggingface.brief(error)})"
        fix = f"type source.path=hf://{repo}/FILE, and source.recipe=FILE"
        raise WeightsError(origin, what, fix, 55) from error
    wanted = dict(args)
    if getattr(backbone, "image_size", None) == wanted.get("img_size"):
        wanted.pop("img_size", None)
    other = (backbone.library, backbone.name.partition(".")[0]) != ("timm", architecture)
    if other or getattr(backbone, "args", {}) != wanted:
        what = f"hf://{repo} holds timm's {architecture}, and the backbone is "
        what += f"{backbone.library}'s {backbone.name}" + " with other arguments" * (not other)
        typed = (override("backbone.name", architecture), override("backbone.args", args))
        fix = f"type backbone=timm {' '.join(map(quoted, typed))}"
        raise RepositoryError("source.path", what, fix)
    count = said.get("num_classes")
    if names and not len(names) == len(set(names)) == (count := said.get("num_classes")):
        what = f"has {len(set(names))} different label_names and num_classes {count}"
        log.warning(printable(f"{origin}: its config.json {what}: it brings no classes"))
        names = ()
    content = read(file.path)
    known: Plain = {"repository": repo, "file": file.file, "revision": file.revision}
    return Published(
        replace(content, facts={**content.facts, **known}),
        origin,
        huggingface.checked_sha256(file.path),
        recipe,
        has_imagenet_classes=False,
        pinned={"path": f"hf://{repo}", "revision": file.revision},
        classes=names or None,
        task={"thresholds": said.get("thresholds")} if several else {},
    )


def of_torchvision_hub(name: str, tag: str | None, local: bool) -> Published:
    """torchvision's weights for ``name``. Raises as :func:`of_timm_hub`."""
    with compiler_deferred():
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


def recognised(weights: Weights, backbone: Backbone) -> Weights:
    """``weights`` with the recipe that the backbone's library publishes for that very file, told by
    its sha256, unless they have one: one architecture has several, and a file says none."""
    if weights.input is not None:
        return weights
    for origin, url, recipe in _files_of(backbone):
        if (found := _HASH.search(url)) and (weights.sha256 or "").startswith(found[1]):
            facts = {**weights.facts, "published": origin}
            return replace(weights, input=recipe(), facts=facts)
    return weights


def _files_of(backbone: Backbone) -> Iterator[tuple[str, str, Callable[[], InputSpec]]]:
    """Origin, address and recipe of each file that a library publishes for ``backbone``."""
    if backbone.library == "timm":
        with compiler_deferred():
            import timm

        for full in timm.list_pretrained(f"{backbone.name.split('.')[0]}.*"):
            config = timm.get_pretrained_cfg(full)
            yield f"timm:{full}", config.url or "", partial(of_timm, config.to_dict())
    elif backbone.library == "torchvision":
        with compiler_deferred():
            from torchvision import models

        for entry in models.get_model_weights(backbone.name):
            recipe = partial(of_torchvision, entry.transforms())
            yield f"torchvision:{entry}", entry.url, recipe


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
    prefix = _HASH.search(path.name)
    try:
        fetch(url, path, prefix[1] if prefix else None, WEIGHTS)
    except OutputError:
        raise
    except XferError as error:
        raise huggingface.unreachable(path.name, f"{url} {error.what}") from error
    return path
