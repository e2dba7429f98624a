"""Training images drawn so that every class comes equally often."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Draw = tuple[int, ...]
"""(index), or (index, time) from the second time on that an image is drawn, time 1."""


def balanced(labels: Sequence[int], shuffled: Callable[[int], list[int]]) -> list[Draw]:
    """As many draws as there are ``labels``, every class as often as any other, give or take one.

    Within a class no image comes twice more often than another. ``shuffled(n)`` is a random order
    of 0 to n - 1; nothing else is random here.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(int(label), []).append(index)
    share, rest = divmod(len(labels), len(members))
    favoured = set(shuffled(len(members))[:rest])
    drawn: list[Draw] = []
    for place, label in enumerate(sorted(members)):
        drawn += _of_class(members[label], share + (place in favoured), shuffled)
    return [drawn[i] for i in shuffled(len(drawn))]


def _of_class(images: list[int], count: int, shuffled: Callable[[int], list[int]]) -> list[Draw]:
    found: list[Draw] = []
    time = 0
    while len(found) < count:
        again = (time,) if time else ()
        found += [(images[i], *again) for i in shuffled(len(images))]
        time += 1
    return found[:count]
