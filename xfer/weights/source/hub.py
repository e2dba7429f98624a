"""Published weights: timm's and torchvision's own, and any file of a Hugging Face repository."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xfer.core.errors import ConfigError, XferError
from xfer.core.protocols import Backbone
from xfer.weights.content import Weights
from xfer.weights.hub import huggingface, imagenet
from xfer.weights.hub.libraries import Published, of_timm_hub, of_torchvision_hub
from xfer.weights.source.match_rules import Rules


@dataclass(frozen=True)
class Hub(Rules):
    """The weights that ``backbone``'s own library publishes for it, or a file of a repository.

    ``tag`` names one of several: for timm the part behind the dot (``a1_in1k``), for torchvision
    the enum member (``IMAGENET1K_V1``); ``None`` is the library's default. ``path`` takes a file
    of any repository instead, ``hf://owner/repo/file``, its entry ``key``. ``revision`` is a
    branch, tag or commit hash. ``local_files_only`` takes what the cache has and asks nobody.
    """

    tag: str | None = None
    path: str | None = None
    revision: str | None = None
    key: str | None = None
    local_files_only: bool = False

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
            found = of_timm_hub(backbone.name, self.tag, self.revision, self.local_files_only)
        elif backbone.library == "torchvision":
            if self.revision is not None:
                raise _contradiction("source.revision", "is not of torchvision's weights")
            found = of_torchvision_hub(backbone.name, self.tag, self.local_files_only)
        else:
            raise ConfigError(
                "source",
                f"no hub holds weights for '{backbone.name}'",
                "use source=file or source=none",
                40,
            )
        return self._published(found)

    def _address(self) -> huggingface.Address:
        repo, file, revision = huggingface.parse(self.path or "")
        if revision is not None and self.revision is not None:
            raise _contradiction("source.revision", "is also in source.path")
        wanted = self.revision if revision is None else revision
        return huggingface.Address(repo, (file,), "main" if wanted is None else wanted)

    def _file(self) -> Weights:
        from xfer.weights.formats.read import read

        address = self._address()
        found = huggingface.find(address, self.local_files_only)
        sha256 = huggingface.checked_sha256(found.path)
        origin = f"{address.shown}@{found.revision}"
        try:
            content = read(found.path, self.key)
        except XferError as error:
            error.where = f"{origin} ({error.where})"
            raise
        weights = self.weights("hub", content, origin, sha256)
        pinned = {"path": address.shown, "revision": found.revision}
        return replace(weights, pinned=pinned, facts={**weights.facts, "revision": found.revision})

    def _published(self, found: Published) -> Weights:
        weights = self.weights("hub", found.content, found.origin, found.sha256)
        if weights.classes is None and found.has_imagenet_classes:
            classes, synonyms = imagenet.classes(), imagenet.synonyms()
            weights = replace(weights, classes=classes, synonyms=synonyms)
        before = {new: weights.renamed.get(new, new) for new in weights.state or ()}
        names = {new: found.renamed.get(name, name) for new, name in before.items()}
        return replace(
            weights,
            input=found.input,
            pinned=found.pinned,
            renamed={new: old for new, old in names.items() if new != old},
        )


def _contradiction(key: str, what: str) -> ConfigError:
    return ConfigError(key, what, f"drop {key}", 49)
