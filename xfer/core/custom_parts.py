"""Custom parts: which packages beside xfer may be used, and whether an error is theirs."""

from __future__ import annotations

import os

from xfer.core.errors import ConfigError, XferError


def allowed_packages() -> tuple[str, ...]:
    """Packages, besides xfer, whose classes a config may name."""
    return tuple(p.strip() for p in os.environ.get("XFER_ALLOW", "").split(",") if p.strip())


def custom_part_error(error: BaseException) -> ConfigError | None:
    """The mistake to report where ``error`` was raised in a package that the user allowed; ``None``
    where it was raised by xfer itself."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__"))
        if name.split(".")[0] in allowed_packages():
            place = f"{name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    if not place or isinstance(error, XferError) or not isinstance(error, Exception):
        return None
    what = f"{type(error).__name__}: {error}"
    return ConfigError(place, what, "mend that part; XFER_FULL_ERROR=1 prints the traceback", 21)
