"""A search space from Hydra's override grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from xfer.config.allowed_below_hydra import check_key
from xfer.core.bounded_yaml import is_deep
from xfer.core.errors import SweepError
from xfer.sweep.space import Choices, Interval, Parameter


def parse(
    params: Mapping[str, str], typed: Sequence[str], loader: ConfigLoader
) -> tuple[tuple[Parameter, ...], tuple[str, ...]]:
    """What varies, and the overrides that do not. What is ``typed`` wins over ``params``."""
    parser = OverridesParser.create(config_loader=loader)
    space: dict[str, Parameter] = {}
    for key, text in params.items():
        check_key("sweep.params", key)
        override = _parsed(parser, f"{key}={text}", f"sweep.params.{key}")
        space[key] = _parameter(parser, override)
    fixed = []
    for text in typed:
        override = _parsed(parser, text, "command line")
        key = str(override.key_or_group)
        if override.is_sweep_override():
            space[key] = _parameter(parser, override)
        else:
            space.pop(key, None)
            fixed.append(text.lstrip("+"))
    return tuple(space.values()), tuple(fixed)


def read(texts: Sequence[str], loader: ConfigLoader) -> dict[str, Any]:
    """The plain values of the overrides of a baseline, by key, as those of a job are read."""
    parser, values = OverridesParser.create(config_loader=loader), dict[str, Any]()
    for text in texts:
        override = _parsed(parser, text, "sweep.baseline")
        if override.is_sweep_override():
            raise SweepError("sweep.baseline", f"'{text}' is several values", "name one", 25)
        values[str(override.key_or_group)] = override.value()
    return values


def _parsed(parser: OverridesParser, text: str, where: str) -> Override:
    try:
        if is_deep(text):
            raise HydraException("nested too deeply")  # Hydra's parser would take minutes
        return parser.parse_override(text)
    except HydraException as error:
        fix = "write a,b,c or choice(a,b), range(1,9), interval(0,1), tag(log,interval(1e-4,1))"
        raise SweepError(where, f"'{text[:200]}' is not understood", fix, 15) from error


def _parameter(parser: OverridesParser, override: Override) -> Parameter:
    key, value = str(override.key_or_group), override.value()
    if getattr(value, "shuffle", False):
        what = "shuffle gives another order at every call"
        fix = f"type {key}=A,B with the values; sweep.sampler=random sweep.n_trials=32 draws them"
        raise SweepError(key, what, fix, 16)
    if isinstance(value, IntervalSweep):
        # Hydra's grammar leaves out neither.
        low, high = (0.0 if end is None else end for end in (value.start, value.end))
        whole = isinstance(low, int) and isinstance(high, int)
        return Interval(key, low, high, whole, "log" in value.tags)
    if not override.is_sweep_override():
        text = str(override.get_value_element_as_str())
        return Choices(key, (text,), (_plain(parser, key, text),))
    texts = tuple(override.sweep_string_iterator())
    plain = tuple(_plain(parser, key, text) for text in texts)
    return Choices(key, texts, plain, ordered=isinstance(value, RangeSweep))


def _plain(parser: OverridesParser, key: str, text: str) -> Any:
    return parser.parse_override(f"{key}={text}").value()
