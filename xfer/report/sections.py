"""The facts of a run as (name, value) texts: weights, data, time and place."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from xfer.core.errors import plural
from xfer.core.types import Plain
from xfer.plan.calibration_plan import calibration_words
from xfer.plan.table import steps_line
from xfer.report.format import ABSENT, listed, number, seconds, share, size, words

Facts = tuple[tuple[str, str], ...]


_TENSORS = {"loaded": "Tensors loaded", "dropped": "Left in the file", "missing": "Initialised"}


def loaded(result: Plain, plan: Plain) -> Facts:
    """The network, and what its initial weights are."""
    source = result.get("source") or {}
    kind, origin = source.get("kind"), (plan.get("source") or {}).get("origin")
    facts = [("Network", words(plan["backbone"]))] if plan.get("backbone") else []
    facts += [("Head", words(plan["head"]))] if plan.get("head") else []
    place = number(kind) + (f": {origin}" if origin else "")
    facts.append(("Loaded from", "nothing: random weights" if kind == "none" else place))
    coverage = source.get("coverage")
    shown = f"{100 * coverage:.1f} %" if isinstance(coverage, float) else words(coverage)
    facts += [("SHA-256", number(source.get("sha256"))), ("Coverage", shown)]
    for key, title in _TENSORS.items():
        facts.append((title, listed(source.get(key))))
    return tuple(fact for fact in facts if fact[1] != ABSENT)


_PROVED = {
    True: "proved: every frozen tensor has the same hash before and after",
    False: "broken: a frozen tensor changed during training",
    None: "not proved yet",
}


def frozen(result: Plain, plan: Plain) -> Facts:
    """How much of the network trains, and what is known of the rest."""
    params = result.get("params") or plan.get("params") or {}
    total, fixed = params.get("total"), params.get("frozen")
    if total is None:
        return ()
    facts, policy = [("Parameters", number(total))], plan.get("freeze") or {}
    if rules := policy.get("rules"):
        rates = (f"lr x {rule['lr']:g}" if rule["lr"] else "frozen" for rule in rules)
        shown = (f"{rule['match']} {rate}" for rule, rate in zip(rules, rates, strict=True))
        facts.append(("Rules", ", ".join(shown)))
    elif policy:
        keys = (f"{k}={v}" for k, v in policy.items() if k[0] != "_" and v is not None)
        name = str(policy["_target_"]).rpartition(".")[2]
        facts.append(("Policy", f"{name} ({', '.join(keys)})"))
    phases = [phase["name"] for phase in plan.get("phases") or []]
    facts += [("Phases", ", then ".join(phases))] if len(phases) > 1 else []
    if params.get("trainable") is not None:
        facts.append(("Trainable", share(params["trainable"], total)))
    if fixed is not None:
        facts.append(("Frozen", share(fixed, total)))
    proof = result.get("freeze") or {}
    if fixed:
        facts.append(("Freeze proof", _PROVED[proof.get("proved")]))
    for audit in proof.get("groups") or []:
        groups = (
            f"{plural(group['tensors'], 'tensor')} at {group['lr']:.3g}, "
            f"decay {group['weight_decay']:g}"
            for group in audit["groups"]
        )
        begins = f"from epoch {audit['epoch']}: "
        facts.append((f"Optimizer, {audit['phase']}", begins + "; ".join(groups)))
    return tuple(facts)


def data(plan: Plain) -> Facts:
    """The classes, and how an image becomes the network's input."""
    facts = []
    if plan.get("classes"):
        facts.append(("Classes", listed(plan["classes"], 40)))
    if plan.get("input"):
        facts.append(("Input", _recipe(plan["input"])))
    return tuple(facts)


def steps(plan: Plain, history: Sequence[Plain]) -> Facts:
    """How long the training was to be, and where it ended earlier; nothing of a head that is
    solved, which takes no steps."""
    steps = plan.get("steps") or {}
    if not steps.get("total"):
        return ()
    facts = [("Steps", steps_line(plan))]
    last = history[-1].get("epoch") if history else None
    if last is not None and last < steps["epochs"]:
        facts.append(("Ended", f"after epoch {last:g} of {steps['epochs']}"))
    return tuple(facts)


def _recipe(spec: Plain) -> str:
    if not {"size", "resize", "interpolation", "mean", "std"} <= spec.keys():
        return words(spec)
    crop = " x ".join(map(str, spec["size"]))
    first = f"resized to {crop}"
    if spec["resize"] is not None:
        first = f"short side resized to {spec['resize']}, centre crop {crop}"
    mean, std = (", ".join(f"{v:.4g}" for v in spec[key]) for key in ("mean", "std"))
    return f"{first} pixels, {spec['interpolation']}; mean {mean}; std {std}"


def calibration(result: Plain) -> Facts:
    """What the network is calibrated by, and what that is worth on images it was not fitted on."""
    known = result.get("calibration")
    if not known:
        return ()
    chosen = known["fitted_on"] == "cv" and (result.get("solved") or {}).get("strengths", 1) > 1
    errors = [f"{known[when]['ece']:.3f}" for when in ("before", "after")]
    losses = [f"{known[when]['loss']:.3f}" for when in ("before", "after")]
    return (
        ("Calibrated by", calibration_words(known)),
        (
            "Calibration error on these",
            f"{' to '.join(errors)}; {known['by_chance']:.3f} by chance",
        ),
        ("Loss on these", " to ".join(losses) + _FLATTERED * chosen),
    )


_FLATTERED = "; the first is flattered, since the penalty is the one of least loss on such images"


def timing(timing: Plain, solved: bool) -> Facts:
    """What was timed; a ``solved`` head has strengths and iterations for epochs and steps."""
    epochs = [s for s in timing.get("epoch_s") or [] if s is not None]
    each = f"{seconds(median(epochs))} (median of {len(epochs)})" if epochs else ABSENT
    facts = [
        ("Total", seconds(timing.get("total_s"))),
        ("Start-up", seconds(timing.get("startup_s"))),
        ("Features", seconds(timing.get("features_s"))),
        ("Training", seconds(timing.get("fit_s"))),
        ("One strength" if solved else "Epoch", each),
    ]
    if timing.get("step_ms_median") is not None:
        name = "Iteration" if solved else "Step"
        facts.append((name, f"{timing['step_ms_median']:.3g} ms (median)"))
    if (waited := timing.get("data_share")) is not None:
        facts.append(("Waited for data", f"{100 * waited:.0f} % of the training time"))
    return tuple((name, value) for name, value in facts if value != ABSENT)


def place(result: Plain) -> Facts:
    """What the run depends on besides its configuration."""
    keys = ("device", "precision", "seed", "features", "versions")
    known = {key: result[key] for key in keys if result.get(key) is not None}
    shown = {key: words(value) for key, value in known.items()}
    if "features" in known:
        shown["features"] = _features(known["features"])
    if first := (result.get("ranks") or [])[:1]:
        then = (f"{row['ranks']} after step {row['after_step']:,}" for row in result["ranks"][1:])
        shown["ranks"] = ", ".join([str(first[0]["ranks"]), *then])
    return tuple((key.capitalize(), text) for key, text in shown.items())


def _features(cache: Plain) -> str:
    """What was computed once, and how much it takes."""
    if not cache.get("cached"):
        return "not cached"
    said = "read from the cache" if cache["hit"] else "computed once"
    views = cache["views"]
    said += f": {views} view{'s' * (views != 1)} of each image at {', '.join(cache['cut'])}, "
    said += size(cache["bytes"])
    if (gap := cache.get("difference")) is None:
        return said
    return f"{said}; a few were computed again and differ by at most {gap:.1e} of the largest"
