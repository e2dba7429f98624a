from __future__ import annotations

import pytest
import torch

from xfer.config import schema
from xfer.config.hydra import compose_specs
from xfer.config.trainer import TrainerOptions
from xfer.core.errors import ConfigError, XferError
from xfer.plan.make import make_plan


def built(**values: object) -> TrainerOptions:
    spec = schema.build("trainer", {"_target_": "xfer.config.trainer.TrainerOptions", **values})
    assert isinstance(spec, TrainerOptions)
    return spec


def test_the_defaults_are_one_best_device_and_a_precision_by_the_plan() -> None:
    spec = built()
    assert spec == TrainerOptions()
    assert (spec.accelerator, spec.devices, spec.precision, spec.compile) == (
        "auto",
        1,
        "auto",
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


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.devices=400", "400 devices cannot share the 717 images of train"),
        ("checkpoint.monitor=val_acx", "no metric is called 'val_acx'"),
        ("checkpoint.start_epoch=21", "21 is after the last epoch 20"),
        ("checkpoint.mode=min", "the best val_acc is its maximum"),
    ],
)
def test_what_cannot_be_trained_is_told_before_training(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_plan(compose_specs(["experiment=digits_sgd", override]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_before_training() -> None:
    with pytest.raises(ConfigError, match="no GPU here"):
        make_plan(compose_specs(["experiment=digits_sgd", "trainer=gpu"]))
