"""Words of other tools (Ultralytics, timm, fastai, Lightning, Keras, Hugging Face) for what has
another name here, each with what to type. The words are in ``other_tools.toml`` beside this."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ADVICE: dict[str, str] = _TABLE["keys"]
"""What to type for words that stand for a key, in one string."""
OPTIONS: dict[str, dict[str, str]] = _TABLE["options"]
"""By group, what to type for words that are no option of it."""


def _by_word(table: dict[str, str]) -> dict[str, str]:
    return {word: typed for typed, words in table.items() for word in words.split()}


STAGES = _by_word(_TABLE["stages"])
"""What others call a stage."""
_KEYS, _REASONS = _by_word(ADVICE), _by_word(_TABLE["not_needed"])
_BESIDE = frozenset(
    {"val_dir", "valid_dir", "test_dir", "val_path", "test_path", "val_data", "test_data"}
    | {"validation_data", "val_folder", "test_folder", "validation_dir", "valid"}
)
# Too usual inside a group to say which tool it comes from.
_USUAL = frozenset(
    {"path", "output", "mode", "root", "drop", "project", "epoch", "train", "val", "task", "cache"}
    | {"format", "metric", "warmup", "folder", "directory", "gamma", "resolution", "strategy"}
    | {"device", "erasing", "valid", "save", "mean", "std", "channels", "interpolation"}
)
_WEIGHTS = r".*[/\\].*|.*\.(?:pt|pth|th|bin|tar|ckpt|safetensors|npz)"
# The group, what its option looks like, and what to type for it.
_SHAPES = (
    ("freeze", r"\d+", "freeze=first_n freeze.n=NUMBER, of stages and not of layers"),
    (
        "source",
        r".*\.(?:jpe?g|png|bmp|webp|tiff?)",
        "'stages=[predict]' predict.input={} checkpoint.path=RUN",
    ),
    ("source", _WEIGHTS, "source=file source.path={}"),
    ("checkpoint", _WEIGHTS, "checkpoint.path={}"),
    ("data", r".*\.[ct]sv", "data=csv data.file={}"),
)
_INDEX = Path(__file__).parents[1] / "models" / "backbone" / "index.json"


def for_key(key: str, groups: tuple[str, ...], value: object = "") -> str:
    """The remedy for a key that is another tool's word, or nothing; with ``value``, where that is
    the name of a model."""
    group, _, rest = key.lower().replace("-", "_").partition(".")
    word = rest.rpartition(".")[2] or group
    inside = bool(rest) and group in groups
    if inside and word in _USUAL and not _KEYS.get(word, "").startswith(f"{group}."):
        return ""
    if word in _REASONS and group not in ("source", "backbone"):
        return f"drop it: {_REASONS[word]}"
    if word in _BESIDE and (not inside or group == "data"):
        return "let train, val and test be folders in one folder, and type data.root=DIR"
    if rest == "name" and group in ("model", "arch", "net", "network"):
        word = group
    typed = f"type {_KEYS[word]}" if word in _KEYS else ""
    named = for_option("backbone", str(value)) if typed.endswith(" backbone.name=NAME") else ""
    return named or typed


def for_option(group: str, word: str) -> str:
    """The remedy for an option of ``group`` that is a model's name, a file or another tool's word,
    or nothing."""
    for typed, others in OPTIONS.get(group, {}).items():
        if word.lower() in others.split():
            return f"type {typed}"
    if group == "backbone":
        if hub := re.fullmatch(r"hf[-_]hub:(.+)", word):
            return f"type source=hub source.path=hf://{hub[1]}, which names its backbone"
        models = json.loads(_INDEX.read_text(encoding="utf-8"))
        owner = next((lib for lib in ("timm", "torchvision") if word in models[lib]), None)
        return f"type backbone={owner} backbone.name={word}" if owner else ""
    for owner, shape, typed in _SHAPES:
        if group == owner and re.fullmatch(shape, word, re.IGNORECASE):
            return f"type {typed.format(word)}"
    return ""
