"""The cross-validation on the run card: which number belongs to what."""

from __future__ import annotations

from xfer.core.types import Plain
from xfer.report.format import number
from xfer.report.tables import Table, per_class


def lead(cv: Plain) -> str:
    """The accuracy with its interval, in one line; of several labels an image mAP, and F1."""
    name = "map" if "map" in cv else "acc"
    title, ends = {"map": "mAP", "acc": "accuracy"}[name], cv[f"{name}_ci95"]
    times = f", {cv['repeats']} times" if cv["repeats"] > 1 else ""
    reach = f"; 95 % interval {ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
    value = "undefined" if cv[name] is None else f"{cv[name]:.3f}"
    rest = "" if name == "acc" else f", macro F1 {number(cv['macro_f1'])}"
    of = f"{cv['n']:,} images in {cv['folds']} folds{times}{reach}"
    return f"Cross-validated {title} {value} ({of}){rest}"


def explained(result: Plain, plan: Plain) -> tuple[str, ...]:
    """What was measured on what: the procedure, its interval, and the final model."""
    cv, folds = result["cv"], plan.get("folds") or {}
    apart = "by a fit that had not seen it"
    if folds.get("group"):
        apart += f", nor any other image of its group ({folds['group']})"
    chosen = "Whatever is chosen in a fit was chosen inside its training part."
    if cv.get("used_for_selection"):
        chosen = (
            "But the images of a fold chose the epoch that answered them, so that the value is "
            "somewhat optimistic; checkpoint.start_epoch equal to trainer.max_epochs chooses none."
        )
    lines = [
        f"{lead(cv)}, loss {number(cv['loss'])}, calibration error {number(cv['ece'])}. It is what "
        f"the procedure is worth: each image was answered {apart}. {chosen} "
        "predictions_oof.csv has every answer.",
        _OF_LABELS if "map" in cv else _OF_IMAGES,
    ]
    final = (
        f"The final model was fitted on all {cv['n']:,} of these images and is not scored on them"
    )
    if epochs := cv.get("final_epochs"):
        final += (
            f": no image was left to choose an epoch by, so it was trained for {epochs} "
            f"epoch{'s' * (epochs != 1)}, the mean of those that were best in the folds"
        )
    if result.get("calibration"):
        final += "; it is calibrated, which the fits of the folds are not"
    lines.append(f"{final}.")
    held = [name for name in ("val", "test") if name in (result.get("scores") or {})]
    if held:
        lines.append(
            f"The score on {' and '.join(held)} is that of the final model, on images that no fit "
            "was trained on and that chose nothing."
        )
    return tuple(lines)


_OF_IMAGES = (
    "The interval has the variance of the corrected resampled t-test (Nadeau and Bengio, 2003), "
    "since the training parts of the folds overlap and repeats add no image; it is never narrower "
    "than that of as many images tested once (Wilson, 1927)."
)
_OF_LABELS = (
    "mAP is the mean over the folds, each of which ranks the answers of one fit; F1 counts the "
    "labels of all folds together. The intervals are those of the corrected resampled t-test "
    "(Nadeau and Bengio, 2003), since the training parts of the folds overlap. The thresholds of a "
    "fold are chosen on the answers of the other folds."
)


def fold_tables(cv: Plain) -> tuple[Table, ...]:
    """The scores by class and by fold."""
    titles = {"n": "images", "acc": "accuracy", "loss": "loss"}
    if "map" in cv:
        titles = {"n": "images", "map": "mAP", "macro_f1": "macro F1", "acc": "exact match"}
        titles["loss"] = "loss"
    folds = tuple(
        (f"{row['repeat']}", f"{row['fold']}", *(number(row[key]) for key in titles))
        for row in cv["per_fold"]
    )
    by_fold = Table("By fold", ("repeat", "fold", *titles.values()), folds, 2)
    return *per_class({"By class": cv["per_class"]}), by_fold
