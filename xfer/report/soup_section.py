"""A soup on the run card and in the terminal: who went in, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence

from xfer.core.errors import plural
from xfer.core.types import Plain
from xfer.report.format import number
from xfer.report.tables import Table


def score_name(score: Plain) -> tuple[str, str]:
    """What networks of a soup are compared by, as a key of their ``score`` and in words."""
    return ("map", "mAP") if "map" in score else ("acc", "accuracy")


def soup_lines(soup: Plain) -> list[str]:
    """What was chosen on which images, and what the soup and its best member are worth on others:
    ``soup`` is what ``result.json`` says of it."""
    chosen, judged, jobs = soup["chosen_on"], soup["judged_on"], soup["jobs"]
    difference, best = soup["difference"], soup["best"]
    key, title = score_name(soup["soup"])
    of = f" {title}" * (key == "map")
    low, high = (f"{100 * end:+.1f}" for end in difference["ci95"])
    listed = f"job{'s' * (len(jobs) != 1)} {', '.join(map(str, jobs))}"
    return [
        f"Soup of {len(jobs)} of {len(soup['members'])} members ({listed}), chosen on "
        f"{chosen['images']} ({plural(chosen['n'], 'image')})",
        f"On {judged['images']} ({plural(judged['n'], 'image')} that chose none of them): "
        f"soup{of} {soup['soup'][key]:.4f}, best member (job {best['job']}) {best[key]:.4f}, "
        f"difference {100 * difference[key]:+.1f} points (95 % interval {low} to {high})",
    ]


def soup_text(soup: Plain) -> tuple[str, ...]:
    """How the soup was made, in sentences for the card."""
    difference, norms = soup["difference"], soup["batch_norm"]
    first, second = soup_lines(soup)
    key, title = score_name(soup["soup"])
    compared = "The interval is that of a paired bootstrap"
    if key == "acc":
        second += (
            f": {plural(difference['gained'], 'image')} the soup alone got right, "
            f"{difference['lost']:,} that member alone"
        )
        compared = "The interval is that of Agresti and Min (2005) for pairs"
    lines = [
        f"{first}. The members are jobs of {soup['sweep']}. In the order of their {title} there, "
        "each joined where that of the average of the weights with it was no lower than without it "
        "(greedy soup, Wortsman et al., 2022).",
        f"{second}. {compared}; the soup was taken because it lies above "
        f"{100 * soup['least']:+.1f} points.",
    ]
    if norms["layers"]:
        lines.append(
            f"The statistics of {norms['layers']} BatchNorm layers, which the members had moved, "
            f"were computed anew on the {norms['images']:,} training images."
        )
    return tuple(lines)


def soup_table(soup: Plain) -> tuple[Table, ...]:
    """A member a row, in the order in which they were tried."""
    key, title = score_name(soup["soup"])
    rows = [
        (
            f"{row['job']}",
            varied(row["parameters"]),
            "in the soup" if row["joins"] else "left out",
            *(number(row[name]) for name in (key, "loss", f"{key}_with", "loss_with")),
        )
        for row in soup["members"]
    ]
    head = ("job", "parameters", "outcome", title, "loss", f"{title} with it", "loss with it")
    return (Table("Members, on the images that chose", head, tuple(rows), 3),)


def tried(soup: Plain) -> list[str]:
    """The same as aligned lines for a terminal."""
    rows: list[Sequence[str]] = [("job", "alone", "with it", "", "")]
    key, _ = score_name(soup["soup"])
    for row in soup["members"]:
        joins = "in the soup" if row["joins"] else "left out"
        together = "" if row[f"{key}_with"] is None else f"{row[f'{key}_with']:.4f}"
        alone = f"{row[key]:.4f}"
        rows.append((f"{row['job']}", alone, together, joins, varied(row["parameters"])))
    widths = [max(len(row[i]) for row in rows) for i in range(4)] + [0]
    return [
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def varied(parameters: Plain) -> str:
    """What a job was given, such as ``optim.lr=0.1 seed=2``."""
    return " ".join(f"{key}={value}" for key, value in parameters.items())
