"""The load report: what became of every tensor, as facts for ``load_report.json``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from xfer.core.checksum import fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xfer.core.types import Plain
    from xfer.weights.content import Match, OptimizerBuffers, Weights


def account(weights: Weights, match: Match, heads: Sequence[str]) -> Plain:
    """The facts of ``load_report.json``; JSON-like.

    ``rows`` has one entry a tensor of the file or of the network; ``coverage`` counts the
    backbone; ``fingerprint`` is the sha256 over the loaded backbone's names, types, shapes and
    bytes (:func:`xfer.core.checksum.fingerprint`). ``heads`` are the classifier's dotted paths.
    """
    prefixes = tuple(f"{head}." for head in heads)
    backbone = [(n, t) for n, t in match.state.items() if not n.startswith(prefixes)]
    return {
        "kind": weights.kind,
        "origin": weights.origin,
        "sha256": weights.sha256,
        "fingerprint": fingerprint(backbone) if backbone else None,
        "coverage": {"parameters": match.coverage, "tensors": match.tensor_coverage},
        "counts": dict(Counter(row.fate for row in match.rows)),
        **weights.facts,
        "prefix": match.prefix or weights.facts.get("prefix"),
        "rebuilt": dict(weights.compat),
        "rows": [
            {"name": row.name, "key": row.key, "fate": row.fate, "shape": list(row.shape)}
            | ({"note": row.note} if row.note else {})
            for row in match.rows
        ],
    }


def mark_continued(report: Plain, momenta: OptimizerBuffers) -> None:
    """Mark the rows of ``report`` whose optimizer state the run continues."""
    keys = {row["key"] for row in report["rows"] if row["name"] in momenta.buffers}
    for row in report["rows"]:
        # A MindSpore entry is named after its parameter, which follows the name of the state.
        if row.get("note") == "optimizer state" and row["key"].partition(".")[2] in keys:
            row["fate"] = "continued"
    report["counts"] = dict(Counter(row["fate"] for row in report["rows"]))
