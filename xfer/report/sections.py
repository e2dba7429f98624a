"""The facts of a run as (name, value) texts: weights, data, time and place."""

from __future__ import annotations

from statistics import median

from xfer.core.types import Plain
from xfer.report.format import ABSENT, listed, number, seconds, share, words

Facts = tuple[tuple[str, str], ...]


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
    told = {"sha256": number(source.get("sha256")), "coverage": shown}
    told |= {key: listed(source.get(key)) for key in ("loaded", "dropped", "missing", "unexpected")}
    names = {"sha256": "SHA-256", "coverage": "Coverage", "loaded": "Tensors loaded"}
    known = [(names.get(k, k.capitalize()), v) for k, v in told.items() if v != ABSENT]
    return tuple(facts + known)


def frozen(result: Plain, plan: Plain) -> Facts:
    """How much of the network trains, and what is known of the rest."""
    params = result.get("params") or plan.get("params") or {}
    total, frozen = params.get("total"), params.get("frozen")
    if total is None:
        return ()
    proved = {
        True: "proved: every frozen tensor has the same hash before and after",
        False: "broken: a frozen tensor changed during training",
        None: "not proved yet",
    }
    facts = [("Parameters", number(total))]
    policy = plan.get("freeze") or {}
    rules = policy.get("rules")
    facts += [("Rules", ", ".join(map(_rule, rules)))] if rules else []
    facts += [] if rules or not policy else [("Policy", _policy(policy))]
    phases = [phase["name"] for phase in plan.get("phases") or []]
    facts += [("Phases", ", then ".join(phases))] if len(phases) > 1 else []
    if params.get("trainable") is not None:
        facts.append(("Trainable", share(params["trainable"], total)))
    if frozen is not None:
        facts.append(("Frozen", share(frozen, total)))
    if frozen:
        facts.append(("Frozen kept", proved[(result.get("freeze") or {}).get("proved")]))
    audits = (result.get("freeze") or {}).get("groups") or []
    facts += [(f"Optimizer, {audit['phase']}", _groups(audit)) for audit in audits]
    return tuple(facts)


def _groups(audit: Plain) -> str:
    """Where a phase begins, its rates and decays by group."""
    groups = (
        f"{group['tensors']} tensors at {group['lr']:.3g}, decay {group['weight_decay']:g}"
        for group in audit["groups"]
    )
    return f"from epoch {audit['epoch']}: " + "; ".join(groups)


def _policy(policy: Plain) -> str:
    keys = (f"{k}={v}" for k, v in policy.items() if k[0] != "_" and v is not None)
    return f"{str(policy['_target_']).rpartition('.')[2]} ({', '.join(keys)})"


def _rule(rule: Plain) -> str:
    rate = f"lr x {rule['lr']:g}" if rule["lr"] else "frozen"
    return f"{rule['match']} {rate}"


def data(plan: Plain) -> Facts:
    """The classes, and how an image becomes the network's input."""
    facts = []
    if plan.get("classes"):
        facts.append(("Classes", listed(plan["classes"], 40)))
    if plan.get("input"):
        facts.append(("Input", _recipe(plan["input"])))
    return tuple(facts)


def steps(plan: Plain) -> Facts:
    """How long the training is."""
    return (("Steps", words(plan["steps"])),) if plan.get("steps") else ()


def _recipe(spec: Plain) -> str:
    if not {"size", "resize", "interpolation", "mean", "std"} <= spec.keys():
        return words(spec)
    crop = " x ".join(map(str, spec["size"]))
    first = f"resized to {crop}"
    if spec["resize"] is not None:
        first = f"short side resized to {spec['resize']}, centre crop {crop}"
    mean, std = (", ".join(f"{v:.4g}" for v in spec[key]) for key in ("mean", "std"))
    return f"{first} pixels, {spec['interpolation']}; mean {mean}; std {std}"


def timing(timing: Plain) -> Facts:
    """What was timed."""
    epochs = [s for s in timing.get("epoch_s") or [] if s is not None]
    facts = [
        ("Total", seconds(timing.get("total_s"))),
        ("Start-up", seconds(timing.get("startup_s"))),
        ("Features", seconds(timing.get("features_s"))),
        ("Training", seconds(timing.get("fit_s"))),
        ("Epoch", f"{seconds(median(epochs))} (median of {len(epochs)})" if epochs else ABSENT),
    ]
    if timing.get("step_ms_median") is not None:
        facts.append(("Step", f"{timing['step_ms_median']:.3g} ms (median)"))
    if timing.get("data_share") is not None:
        facts.append(("Waited for data", f"{timing['data_share']:.0%} of the training time"))
    return tuple((name, value) for name, value in facts if value != ABSENT)


def place(result: Plain) -> Facts:
    """What the run depends on besides its configuration."""
    keys = ("device", "precision", "seed", "features", "versions")
    return tuple((k.capitalize(), words(result[k])) for k in keys if result.get(k) is not None)
