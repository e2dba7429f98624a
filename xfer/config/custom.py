"""The metrics and callbacks that ``trainer`` names: classes of the user's, each one allowed.

They are checked with the rest of the configuration, before anything is paid for. A metric is built
then; a callback, which may count, is built anew for each fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from xfer.config import schema
from xfer.core.errors import Attempts, ConfigError, XferError
from xfer.core.protocols import CustomMetric
from xfer.core.types import Plain

MakeCallback = Callable[[], Any]
"""Gives a new callback of Lightning. Raises ConfigError where its class refuses."""


def metrics(
    nodes: Mapping[str, Plain], where: schema.Where, attempt: Attempts
) -> dict[str, CustomMetric]:
    """Those of ``trainer.metrics`` by name; ``attempt`` has what is wrong with them."""
    built = {name: attempt(_metric, name, node, where) for name, node in nodes.items()}
    return {name: metric for name, metric in built.items() if metric is not None}


def _metric(name: str, node: Plain, where: schema.Where) -> CustomMetric:
    key = f"trainer.metrics.{name}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        what, fix = f"'{name}' cannot name a column", "use small letters, digits and _"
        raise ConfigError(where(key), what, fix, 21)
    metric: CustomMetric = schema.build("metric", node, where, key)
    better = metric.better
    if better not in ("max", "min"):
        what = f"better is {better!r} in {type(metric).__name__}"
        raise ConfigError(where(key), what, "make it 'max' or 'min'", 21)
    return metric


def callbacks(
    nodes: Sequence[Plain], where: schema.Where, attempt: Attempts
) -> tuple[MakeCallback, ...]:
    """What makes those of ``trainer.callbacks``, in their order."""
    makes = (attempt(_callback, f"trainer.callbacks[{i}]", n, where) for i, n in enumerate(nodes))
    return tuple(make for make in makes if make is not None)


# What xfer does itself, by the class of Lightning that would do it again.
_INSTEAD = {
    "Checkpoint": "checkpoint.every_n_epochs=1 keeps checkpoints",
    "ProgressBar": "xfer shows the steps itself",
    "ModelSummary": "stages=[] shows every parameter",
}


def _callback(key: str, node: Plain, where: schema.Where) -> MakeCallback:
    place = where("trainer.callbacks")

    def inside(dotted: str) -> str:
        return place.replace("trainer.callbacks", dotted)

    kind, arguments = schema.checked("callback", node, inside, key)
    lightning = [base for base in kind.__mro__ if base.__module__.startswith("pytorch_lightning.")]
    bases = {base.__name__ for base in lightning}
    if "Callback" not in bases:
        what, fix = f"{kind.__name__} is no callback", "derive it from pytorch_lightning.Callback"
        raise ConfigError(place, what, f"{fix}: see docs/howto/extend.md", 21)
    for name in bases & _INSTEAD.keys():
        what = f"{kind.__name__} does what xfer does"
        raise ConfigError(place, what, f"drop it: {_INSTEAD[name]}", 21)

    def make() -> Any:
        try:
            return kind(**arguments)
        except XferError:
            raise
        except Exception as error:  # a class of the user may raise anything
            what = f"{kind.__name__} refuses its arguments ({error})"
            raise ConfigError(place, what, f"mend {key}", 21) from error

    return make


def lines(metrics: Mapping[str, Plain], callbacks: Sequence[Plain]) -> Iterator[tuple[str, str]]:
    """What the plan says of both."""
    if metrics:
        yield "metrics", ", ".join(f"{name} ({_name(node)})" for name, node in metrics.items())
    if callbacks:
        yield "callbacks", ", ".join(map(_name, callbacks))


def _name(node: Plain) -> str:
    return str(node["_target_"])
