from __future__ import annotations

from xfer import schema
from xfer.features import Never


def test_never_is_a_choice_without_options() -> None:
    assert schema.build("features", {"_target_": "xfer.features.Never"}) == Never()
    assert schema.signature(Never) == {}
