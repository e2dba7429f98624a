"""What the run card says of a certificate."""

from __future__ import annotations

from xfer.core.types import Plain

_OF = {"cv": "training images, each held out by a fold", "val": "validation images"}


def promised_lines(result: Plain) -> list[str]:
    """The certificate of ``result.json`` in sentences; none without one."""
    facts = result.get("certificate")
    if not facts:
        return []
    share = f"{100 * facts['coverage']:g} %"
    each = " of each class" if facts["by_class"] else ""
    fitted = f"{facts['n']:,} {_OF.get(facts['fitted_on'], 'images')}"
    first = (
        f"Prediction sets are to have the true class of {share} of images{each}. They are fitted "
        f"on {fitted}, and have {facts['mean_set_size']:.2f} classes on average there."
    )
    score = (result.get("scores") or {}).get(facts["fitted_on"]) or {}
    if score.get("used_for_selection"):
        first += " These also chose the best epoch, so that sets may cover a little less."
    return [first, _checked(facts), _ALWAYS.format(share), _UNLIKE]


def _checked(facts: Plain) -> str:
    if not facts.get("checked_on"):
        return (
            "What they cover was not checked: no labelled images were answered that nothing was "
            "fitted on. Give a test split."
        )
    n, sizes = facts["checked"], facts["set_sizes"]
    counts = ", ".join(f"{count:,} of size {size}" for size, count in sizes.items())
    return (
        f"On the {n:,} images of {facts['checked_on']}, which nothing was fitted on, they have the "
        f"true class of {100 * facts['covered']:.1f} % ({round(facts['covered'] * n):,} of {n:,}); "
        f"sets: {counts}."
    )


_ALWAYS = (
    "The most probable class is always in, so that no set is empty: where the network is right "
    "more often than {}, its sets cover more."
)
_UNLIKE = (
    "p_unlike is the share of images like those of training whose features are as far from theirs. "
    "Below 0.05, say, the image is probably of none of the classes, and its set says nothing."
)
