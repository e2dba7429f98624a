"""Facts that were read back from a file, held to the types that the file must have."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from xfer.core.errors import ResumeError
from xfer.core.files import read_json


def checked(hint: Any, facts: object) -> Any:
    """Return ``facts``, JSON-like, as ``hint`` wants them, with no conversion of types.

    Raises ValueError with one line that names the first value at fault.
    """
    try:
        text = json.dumps(facts, allow_nan=False)
        return TypeAdapter(hint).validate_json(text, strict=True)
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(str(part) for part in detail["loc"]) or "it"
        shown = json.dumps(detail["input"], default=str)[:60]
        raise ValueError(
            f"{place} is {shown}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
        ) from error
    except (TypeError, RecursionError, UnicodeEncodeError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


def read_checked(path: Path, hint: Any, fix: str, number: int, *, writer: str = "a run") -> Any:
    """What the JSON file ``path`` of a run folder holds, or ``None`` where there is no such file.

    Raises ResumeError ``number`` with the remedy ``fix`` for a file that cannot be read or that
    ``hint`` does not describe, which ``writer`` did not write.
    """
    if not os.path.lexists(path):
        return None
    try:
        facts = read_json(path)
        checked(hint, facts)
    except (OSError, ValueError) as error:
        what = f"is not what {writer} writes ({getattr(error, 'strerror', None) or error})"
        raise ResumeError(path, what, fix, number) from error
    return facts
