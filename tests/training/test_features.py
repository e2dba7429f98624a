from __future__ import annotations

from xfer.config import schema
from xfer.training.features import Never


def test_never_is_a_choice_without_options() -> None:
    assert schema.build("features", {"_target_": "xfer.training.features.Never"}) == Never()
    assert schema.signature(Never) == {}
