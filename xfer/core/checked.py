"""Facts that were read back from a file, held to the types that the file must have."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError


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
