"""The 1000 classes of ImageNet-1k (ILSVRC 2012) in the order of every published network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

# WordNet calls two kinds of crane, and two kinds of maillot, by one word. The names of these two
# are torchvision's.
_SECOND = {134: "crane bird", 639: "maillot tank suit"}


@cache
def classes() -> tuple[str, ...]:
    """A name a class, all distinct: the first lemma of its WordNet synset, as timm lists them."""
    return tuple(_SECOND.get(i, names[1]) for i, names in enumerate(synonyms()))


@cache
def synonyms() -> tuple[tuple[str, ...], ...]:
    """A class's synset (``n02099601``), then each of its lemmas. 18 lemmas are of two classes."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(
        (synset, *info.label_name_to_description(synset).split(", "))
        for synset in info.label_names()
    )


def lists(names: Sequence[str]) -> bool:
    """Whether ``names`` are these classes in this order, by canonical name or any lemma."""
    known = zip(names, classes(), synonyms(), strict=False)
    return len(names) == 1000 and all(n == name or n in lemmas for n, name, lemmas in known)
