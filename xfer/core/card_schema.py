"""What a card must look like, in a checkpoint, an exported file or a file beside one.

Whoever sends weights sends their card along: every value is held to its type and to a size that
a network could have, before anything is built, allocated or written because of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, with_config
from typing_extensions import TypedDict

from xfer.core.certificate import CertificateFacts
from xfer.core.errors import ConfigError
from xfer.core.files import parsed, read_text
from xfer.core.read_back import checked
from xfer.core.types import Card, InputSpec

_FORBID = ConfigDict(extra="forbid", allow_inf_nan=False)
_ALLOW = ConfigDict(extra="allow", allow_inf_nan=False)
_MOST_PIXELS, _MOST_CLASSES = 8192, 1_000_000
_Pixels = Annotated[int, Field(gt=0, le=_MOST_PIXELS)]
_Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
_Std = Annotated[float, Field(gt=0, le=1e6)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
_Share = Annotated[float, Field(ge=0, le=1)]
_End = Annotated[float, Field(ge=-1e38, le=1e38)]
Classes = Annotated[list[_Name], Field(min_length=1, max_length=_MOST_CLASSES)]


def _rises(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise ValueError("its first number must be below its second")
    return ends


@with_config(_FORBID)
class Recipe(TypedDict):
    """The recipe of a network's input, as ``preprocess.json`` has it."""

    size: tuple[_Pixels, _Pixels]
    resize: _Pixels | None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]
    range: NotRequired[Annotated[tuple[_End, _End], AfterValidator(_rises)]]


def recipe_of(text: str) -> InputSpec:
    """The recipe that a ``preprocess.json`` of this ``text`` holds. Raises ValueError."""
    return InputSpec.from_plain(checked(Recipe, parsed(text)))


def read_recipe(key: str, file: str) -> InputSpec:
    """The recipe in ``file``, which ``key`` names. Raises ConfigError for none."""
    try:
        return recipe_of(text_of(key, file))
    except ValueError as error:
        fix = "give size, resize, interpolation, mean and std as preprocess.json has them"
        raise ConfigError(key, f"'{file}' is not an input recipe ({error})", fix, 98) from error


def text_of(key: str, file: str) -> str:
    """What is in ``file``, which ``key`` names. Raises ConfigError for what cannot be read."""
    try:
        return read_text(Path(file).expanduser())
    except (OSError, UnicodeDecodeError) as error:
        what = f"'{file}' cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(key, what, "give an existing file", 51) from error


@with_config(_ALLOW)
class _SpecFacts(TypedDict):
    _target_: str


@with_config(_ALLOW)
class _SourceFacts(TypedDict, total=False):
    spec: _SpecFacts
    kind: str
    origin: str | None
    sha256: str | None
    coverage: float | None
    kept: bool
    classes: Annotated[int, Field(gt=0, le=_MOST_CLASSES)] | None
    rows: list[list[Annotated[int, Field(ge=0)]]]


@with_config(_ALLOW)
class _LayerRule(TypedDict):
    match: Annotated[str, StringConstraints(max_length=1000)]


@with_config(_FORBID)
class _Compat(TypedDict, total=False):
    dialect: str
    same: list[str]
    batch_norm: list[_LayerRule]
    layer_norm: list[_LayerRule]
    conv: list[_LayerRule]
    max_pool: list[_LayerRule]
    gelu: list[_LayerRule]
    network: list[_LayerRule]


@with_config(_FORBID)
class _Adapters(TypedDict, total=False):
    rank: Annotated[int, Field(gt=0)]
    scale: float
    weights: list[str]


class _Measured(TypedDict):
    ece: _Share
    loss: Annotated[float, Field(ge=0)]


class _BeforeAfter(TypedDict):
    before: _Share
    after: _Share


@with_config(_FORBID)
class _CalibrationFacts(TypedDict):
    method: Literal["temperature", "vector"]
    fitted_on: Literal["cv", "val"]
    n: Annotated[int, Field(gt=0)]
    temperature: NotRequired[Annotated[float, Field(gt=0)]]
    scale: NotRequired[list[Annotated[float, Field(gt=0)]]]
    shift: NotRequired[list[float]]
    before: _Measured
    after: _Measured
    by_chance: _Share
    per_class: NotRequired[dict[str, _BeforeAfter]]
    warnings: list[str]


def _is_complete(facts: _CalibrationFacts) -> _CalibrationFacts:
    needed = {"temperature"} if facts["method"] == "temperature" else {"scale", "shift"}
    if needed != {"temperature", "scale", "shift"} & facts.keys():
        raise ValueError(f"{facts['method']} has {' and '.join(sorted(needed))}, and no other")
    return facts


@with_config(_FORBID)
class TaskFacts(TypedDict):
    """What a network answers where an image has several labels or none."""

    kind: Literal["multilabel"]
    thresholds: list[_Share]
    chosen_on: Literal["cv", "val", "given"]


@with_config(_FORBID)
class _CardFacts(TypedDict):
    backbone: _SpecFacts
    head: _SpecFacts
    classes: Classes
    input: Recipe
    source: NotRequired[_SourceFacts]
    experiment: NotRequired[str]
    splits: NotRequired[dict[str, str]]
    compat: NotRequired[_Compat]
    adapters: NotRequired[_Adapters]
    calibration: NotRequired[Annotated[_CalibrationFacts, AfterValidator(_is_complete)]]
    certificate: NotRequired[CertificateFacts]
    task: NotRequired[TaskFacts]


def card_of(facts: Any) -> Card:
    """The card that plain facts describe. Raises ValueError in one line for what is none."""
    checked(_CardFacts, facts)
    classes = facts["classes"]
    if len(set(classes)) != len(classes):
        raise ValueError("classes lists a name twice")
    sizes = {len(facts.get("calibration", {}).get(key, classes)) for key in ("scale", "shift")}
    if sizes != {len(classes)}:
        raise ValueError("calibration does not have one scale and one shift a class")
    if len(facts.get("task", {}).get("thresholds", classes)) != len(classes):
        raise ValueError("task does not have one threshold a class")
    return Card.from_plain(facts)
