"""Published weights: timm's and torchvision's own, and any file of a Hugging Face repository."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xfer.core.errors import ConfigError
from xfer.core.protocols import Backbone
from xfer.weights.content import Weights
from xfer.weights.formats.read import read
from xfer.weights.hub import huggingface, imagenet
from xfer.weights.hub.libraries import named, of_timm_hub, of_torchvision_hub
from xfer.weights.source.match_rules import Rules


@dataclass(frozen=True)
class Hub(Rules):
    """The weights that ``backbone``'s own library publishes for it, or a file of a repository.

    ``tag`` names one of several: for timm the part after the dot (``a1_in1k``), for torchvision
    the enum member (``IMAGENET1K_V1``); ``None`` is the library's default. ``path`` takes a file
    of any repository instead, ``hf://owner/repo/file``, and ``key`` its entry. ``revision`` is a
    branch, tag or commit hash. ``local_files_only`` uses what is in the cache, without a request.
    """

    tag: str | None = None
    """which of the published weights: for timm the part behind the dot (``a1_in1k``), for
    torchvision the enum member (``IMAGENET1K_V1``); ``null`` is the library's default"""
    path: str | None = None
    """a file of any Hugging Face repository instead: ``hf://owner/repo/file``, or with
    ``@revision``"""
    revision: str | None = None
    """branch, tag or commit of the repository; ``null`` is its main branch. ``plan.json`` has
    the commit hash under ``source``"""
    key: str | None = None
    """as for ``file``, with ``source.path``"""
    local_files_only: bool = False
    """take what the cache has, ask nobody"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None:
            if self.key is not None:
                raise _contradiction("source.key", "is of source.path, which is not given")
            return
        address = self._address()
        if self.tag is not None:
            raise _contradiction("source.tag", f"is not of {address.shown}")

    def load(self, backbone: Backbone) -> Weights:
        """From the local cache, else from the hub. Raises WeightsError when neither has it."""
        if self.path is not None:
            return self._file()
        if backbone.library == "timm":
            published = of_timm_hub(backbone.name, self.tag, self.revision, self.local_files_only)
        elif backbone.library == "torchvision":
            if self.revision is not None:
                raise _contradiction("source.revision", "is not of torchvision's weights")
            published = of_torchvision_hub(backbone.name, self.tag, self.local_files_only)
        else:
            what = f"no hub holds weights for '{backbone.name}'"
            raise ConfigError("source", what, "use source=file or source=none", 40)
        weights = self.weights("hub", published.content, published.origin, published.sha256)
        if weights.classes is None and published.has_imagenet_classes:
            classes, synonyms = imagenet.classes(), imagenet.synonyms()
            weights = replace(weights, classes=classes, synonyms=synonyms)
        recipe = weights.input or published.input
        return replace(weights, input=recipe, pinned=published.pinned)

    def _address(self) -> huggingface.Address:
        repo, file, revision = huggingface.parse(self.path or "")
        if revision is not None and self.revision is not None:
            raise _contradiction("source.revision", "is also in source.path")
        wanted = self.revision if revision is None else revision
        return huggingface.Address(repo, (file,), "main" if wanted is None else wanted)

    def _file(self) -> Weights:
        address = self._address()
        file = huggingface.find(address, self.local_files_only)
        sha256 = huggingface.checked_sha256(file.path)
        origin = f"{address.shown}@{file.revision}"
        with named(origin):
            content = read(file.path, self.key)
        weights = self.weights("hub", content, origin, sha256)
        pinned = {"path": address.shown, "revision": file.revision}
        return replace(weights, pinned=pinned, facts={**weights.facts, "revision": file.revision})


def _contradiction(key: str, what: str) -> ConfigError:
    return ConfigError(key, what, f"drop {key}", 49)
