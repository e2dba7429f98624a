"""Which parameter is which in an optimizer state that counts them.

Every group lists its parameters in the model's order, because they come out of
``model.named_parameters()``, whole or filtered. So the shapes of the buffers tell them apart,
unless there are two ways to deal the parameters to the groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from xfer.core.errors import WeightsError

if TYPE_CHECKING:
    from xfer.weights.content import Shape

_PATIENCE = 1_000_000
"""How much is tried before the ways are too many; about a second."""


def names(
    groups: Sequence[Sequence[int]], shapes: Mapping[int, Shape], parameters: Mapping[str, Shape]
) -> dict[int, str]:
    """The name of every number in ``shapes``.

    ``groups`` are the optimizer's numbers by group, ``shapes`` those of its buffers where it has
    any, ``parameters`` all that it may have held, in the model's order. Groups that give the
    whole model one after another are taken as they are. Otherwise parameters may be split among
    groups in any way (no weight decay first or last, head apart) or be in none (frozen), and the
    names are those that all ways agree on. Raises WeightsError where they differ or none fits.
    """
    numbers = list(chain(*groups))
    if [shapes.get(number) for number in numbers] == list(parameters.values()):
        return dict(zip(numbers, parameters, strict=True))
    if len(numbers) > len(parameters):
        raise _misfit(f"it is of {len(numbers)} parameters, the file holds {len(parameters)}")
    if all(len(group) <= 1 for group in groups):
        groups = [numbers]  # then the order of the groups is all that can tell them apart
    found = _Dealing(groups, shapes, parameters).possible()
    if not found:
        raise _misfit(_first_misfit(numbers, shapes, parameters))
    for number, possible in sorted(found.items()):
        if len(possible) > 1:
            raise _ambiguous(f"state {number} may be of {' or '.join(sorted(possible)[:2])}")
    return {number: possible.pop() for number, possible in found.items()}


class _Dealing:
    """All ways to deal parameters, in the model's order, to groups or to nobody.

    How far a way has come is told by how many parameters each group has.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        shapes: Mapping[int, Shape],
        parameters: Mapping[str, Shape],
    ) -> None:
        self.groups, self.shapes = groups, shapes
        self.names, self.wanted = list(parameters), list(parameters.values())
        self.full = tuple(len(group) for group in groups)
        self.spare = len(self.names) - sum(self.full)

    def possible(self) -> dict[int, set[str]]:
        """The names that each number with a shape can have; empty when there is no way."""
        found: dict[int, set[str]] = {}
        alive = {self.full}
        # Backwards, so that a way that leads nowhere is not seen.
        for place, stage in reversed(list(enumerate(self._stages()))):
            moves = [(b, n, a) for b in stage for n, a in self._moves(b, place) if a in alive]
            alive = {before for before, _, _ in moves}
            for _, number, _ in moves:
                if number is not None and number in self.shapes:
                    found.setdefault(number, set()).add(self.names[place])
        return found if alive else {}

    def _stages(self) -> list[set[Shape]]:
        """What can be reached before each parameter is dealt."""
        spent, stages = 0, [{(0,) * len(self.groups)}]
        for place in range(len(self.names)):
            spent += len(stages[-1]) * len(self.groups) ** 2
            if spent > _PATIENCE:
                raise _ambiguous("too many ways fit")
            stages.append({a for before in stages[-1] for _, a in self._moves(before, place)})
        return stages[:-1]

    def _moves(self, taken: Shape, place: int) -> Iterator[tuple[int | None, Shape]]:
        """The number that the parameter at ``place`` may have, and how far that leads."""
        shape = self.wanted[place]
        if place - sum(taken) < self.spare:
            yield None, taken
        for g, group in enumerate(self.groups):
            if taken[g] < len(group) and self.shapes.get(group[taken[g]], shape) == shape:
                yield group[taken[g]], (*taken[:g], taken[g] + 1, *taken[g + 1 :])


def _first_misfit(
    numbers: Sequence[int], shapes: Mapping[int, Shape], parameters: Mapping[str, Shape]
) -> str:
    for number, (name, shape) in zip(numbers, parameters.items(), strict=False):
        if shapes.get(number, shape) != shape:
            found = list(shapes[number])
            return f"in the model's order, state {number} is {found}, '{name}' {list(shape)}"
    return "its groups are not in the model's order"


def _misfit(why: str) -> WeightsError:
    return WeightsError(
        "source.optimizer",
        f"the file's optimizer state does not fit its weights: {why}",
        "type source.optimizer=ignore",
        26,
    )


def _ambiguous(why: str) -> WeightsError:
    return WeightsError(
        "source.optimizer",
        f"which parameter is which in the file's optimizer state cannot be told: {why}",
        "give the optimizer model.named_parameters() before saving, "
        "or type source.optimizer=ignore",
        27,
    )
