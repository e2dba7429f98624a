"""All randomness is a pure function of (purpose, seed, position): never of history.

A run that starts again at (epoch, step) draws what the uninterrupted run drew there, whatever
the number of workers and whatever was drawn before.
"""

import hashlib


def derive(purpose: str, *position: int | str) -> int:
    """A seed in [0, 2**63) for ``purpose`` at ``position``; the same on every platform."""
    text = "\x1f".join([purpose, *map(str, position)])
    # surrogateescape: file names may be no UTF-8.
    data = text.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1
