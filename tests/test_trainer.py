from __future__ import annotations

import pytest

from xfer import schema
from xfer.errors import XferError
from xfer.trainer import Trainer


def built(**values: object) -> Trainer:
    spec = schema.build("trainer", {"_target_": "xfer.trainer.Trainer", **values})
    assert isinstance(spec, Trainer)
    return spec


def test_the_defaults_are_one_best_device_in_full_precision() -> None:
    spec = built()
    assert spec == Trainer()
    assert (spec.accelerator, spec.devices, spec.precision, spec.compile) == (
        "auto",
        1,
        "32-true",
        False,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_epochs", 0),
        ("devices", 0),
        ("accumulate", 0),
        ("clip_norm", -1.0),
        ("ema_decay", 1.0),
        ("patience", -1),
        ("precision", "bf16"),
        ("accelerator", "cuda"),
        ("compile", 1),
    ],
)
def test_a_value_out_of_range_is_told_by_its_key(key: str, value: object) -> None:
    with pytest.raises(XferError, match=rf"trainer\.{key}"):
        built(**{key: value})
