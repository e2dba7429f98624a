"""Published weights: timm's and torchvision's own, and any file of a Hugging Face repository."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xfer.core.errors import ConfigError
from xfer.core.protocols import Backbone
from xfer.weights.content import Weights
from xfer.weights.formats.read import read
from xfer.weights.hub import huggingface, imagenet
from xfer.weights.hub.libraries import (
    named,
    of_timm_hub,
    of_timm_repository,
    of_torchvision_hub,
)
from xfer.weights.source.match_rules import Rules


@dataclass(frozen=True)
class Hub(Rules):
    """The weights that ``backbone``'s own library publishes for it, or a file of a repository."""

    tag: str | None = None
    """which of the published weights: for timm the part behind the dot (``a1_in1k``), for
    torchvision the enum member (``IMAGENET1K_V1``); ``null`` is the library's default"""
    path: str | None = None
    """a file of any Hugging Face repository instead: ``hf://owner/repo/file``, or with
    ``@revision``; without a file the model that timm opens there, with its classes and recipe"""
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
        repo, file, _ = self._named()
        address = huggingface.Address(repo, (file or "config.json",), self._revision())
        if self.tag is not None:
            raise _contradiction("source.tag", f"is not of {address.shown}")
        if self.key is not None and file is None:
            raise _contradiction("source.key", f"is of a file, and {self.path} names none")

    def load(self, backbone: Backbone) -> Weights:
        """From the local cache, else from the hub. Raises WeightsError when neither has it."""
        local = self.local_files_only
        if self.path is not None:
            repo, file, _ = self._named()
            if file is not None:
                return self._file(repo, file)
            published = of_timm_repository(repo, self._revision(), backbone, local)
        elif backbone.library == "timm":
            published = of_timm_hub(backbone.name, self.tag, self.revision, local)
        elif backbone.library == "torchvision":
            if self.revision is not None:
                raise _contradiction("source.revision", "is not of torchvision's weights")
            published = of_torchvision_hub(backbone.name, self.tag, local)
        else:
            what = f"no hub holds weights for '{backbone.name}'"
            raise ConfigError("source", what, "use source=file or source=none", 40)
        weights = self.weights("hub", published.content, published.origin, published.sha256)
        if weights.classes is None and published.has_imagenet_classes:
            classes, synonyms = imagenet.classes(), imagenet.synonyms()
            weights = replace(weights, classes=classes, synonyms=synonyms)
        return replace(
            weights,
            input=weights.input or published.input,
            classes=weights.classes or published.classes,
            task=published.task,
            pinned=published.pinned,
        )

    def _named(self) -> tuple[str, str | None, str | None]:
        repo, file, revision = huggingface.parse(self.path or "")
        if revision is not None and self.revision is not None:
            raise _contradiction("source.revision", "is also in source.path")
        return repo, file, revision

    def _revision(self) -> str:
        revision = self._named()[2] if self.revision is None else self.revision
        return "main" if revision is None else revision

    def _file(self, repo: str, name: str) -> Weights:
        address = huggingface.Address(repo, (name,), self._revision())
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
