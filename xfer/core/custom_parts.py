"""Custom parts: which packages beside xfer may be used, and whether an error is theirs."""

from __future__ import annotations

import os

from xfer.core.errors import ConfigError, XferError


def allowed_packages() -> tuple[str, ...]:
    """Packages, besides xfer, whose classes a config may name."""
    return tuple(p.strip() for p in os.environ.get("XFER_ALLOW", "").split(",") if p.strip())


_CALL_XFER = ("pytorch_lightning.", "lightning_fabric.", "torch.")
"""Libraries that a fit runs inside of: where one of them is allowed, for a callback in it, an error
is its own only if nothing of xfer was called from there."""


def custom_part_error(error: BaseException) -> ConfigError | None:
    """The mistake to report where ``error`` was raised in a package that the user allowed; ``None``
    where it was raised by xfer itself."""
    trace, place, allowed = error.__traceback__, "", allowed_packages()
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__"))
        package = name.split(".")[0]
        if package in allowed:
            place = f"{name}, line {trace.tb_lineno}"
        elif package == "xfer" and place.startswith(_CALL_XFER):
            place = ""
        trace = trace.tb_next
    if not place or isinstance(error, XferError) or not isinstance(error, Exception):
        return None
    what = f"{type(error).__name__}: {error}"
    return ConfigError(place, what, "mend that part; XFER_FULL_ERROR=1 prints the traceback", 21)
