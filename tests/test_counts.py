"""The suite has as many cases of each kind as docs/reliability.md promises."""

from __future__ import annotations

from counts import KINDS, counts


def test_there_are_as_many_cases_as_promised():
    found = counts()
    assert {kind for kind, count in found.items() if count < KINDS[kind][0]} == set(), found
