"""The tables of bench/defaults.py, and each figure that was promised beside what was measured."""

import math
import statistics

COLUMNS = ("acc", "loss", "ece", "seconds")


def report(records):
    for device in sorted({r["device"] for r in records}):
        here = [r for r in records if r["device"] == device]
        print(f"{device}:\n")
        failures = [r for r in here if "failed" in r]
        here = [r for r in here if "failed" not in r]
        groups = gather(here)
        table(groups)
        print()
        for r in failures:
            print(f"FAILED {r['data']} {r['split']} {r['network']} {r['method']}: {r['failed']}")
        for name, met, figures in [*accuracy(groups), *fine_tuning(groups), *times(groups, here)]:
            print(f"{'met' if met else 'NOT MET':<8} {name}: {figures}")


def gather(records):
    """(pair, method) to its figures: means over splits and rounds, of the seconds the median."""
    groups = {}
    for r in records:
        pair = (r["data"], r["network"]) if r["method"] != "import" else ("all", "all")
        groups.setdefault((pair, r["method"]), []).append(r)
    return {key: {"runs": len(rows), "rows": rows, **mean(rows)} for key, rows in groups.items()}


def mean(rows):
    scored = [name for name in COLUMNS[:3] if all(name in r for r in rows)]
    found = {name: statistics.mean(r[name] for r in rows) for name in scored}
    return {**found, "seconds": statistics.median(r["seconds"] for r in rows)}


def table(groups):
    print("| data | network | method | runs | accuracy | loss | calibration error | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for ((data, network), method), g in groups.items():
        scores = [f"{g[name]:.4f}" if name in g else "" for name in COLUMNS[:3]]
        cells = (data, network, method, str(g["runs"]), *scores, f"{g['seconds']:.1f}")
        print(f"| {' | '.join(cells)} |".replace("  ", " "))


def pairs(groups, *methods):
    """Figures of each pair that every one of ``methods`` was measured on."""
    every = dict.fromkeys(pair for pair, _ in groups)
    for pair in every:
        if all((pair, method) in groups for method in methods):
            yield " ".join(pair), *(groups[pair, method] for method in methods)


def accuracy(groups):
    plain, sklearn = [], []
    for name, ours, theirs in pairs(groups, "plain", "sklearn"):
        plain.append(ours["acc"])
        sklearn.append(theirs["acc"])
        low, high = theirs["acc"] - 0.005, 1.1 * theirs["loss"]
        yield f"{name}, plain accuracy", *least(ours["acc"], low, "scikit-learn - 0.005")
        yield f"{name}, plain loss", *most(ours["loss"], high, "1.1 x scikit-learn")
    if plain:
        means = statistics.mean(plain), statistics.mean(sklearn)
        yield "mean plain accuracy", *least(*means, "scikit-learn")
    for name, ours in pairs(groups, "plain"):
        yield f"{name}, plain calibration error", *most(ours["ece"], 0.05, "")


def fine_tuning(groups):
    for other, more in (("plain", 0.01), ("fastai", 0.05)):
        both = list(pairs(groups, "lp_ft", other))
        if both:
            ours = statistics.mean(first["acc"] for _, first, _ in both)
            low = statistics.mean(second["acc"] for _, _, second in both) + more
            yield f"mean lp_ft accuracy, {len(both)} pairs", *least(ours, low, f"{other} + {more}")
    for name, ours, theirs in pairs(groups, "lp_ft", "fastai"):
        half = theirs["seconds"] / 2
        yield f"{name}, lp_ft seconds", *most(ours["seconds"], half, "half of fastai")
    for name, ours, plain in pairs(groups, "lp_ft", "plain"):
        less, width = paired(ours["rows"], plain["rows"])
        yield f"{name}, lp_ft below plain", *most(-less, width, "95 % interval of the difference")


def paired(first, second):
    """Difference of accuracy on the same images, and half its 95 % interval."""
    other = {(r["split"], r["round"]): set(r["wrong"]) for r in second}
    n = gained = lost = 0
    for r in first:
        if (r["split"], r["round"]) in other:
            mine, theirs = set(r["wrong"]), other[r["split"], r["round"]]
            n, gained, lost = n + r["n"], gained + len(theirs - mine), lost + len(mine - theirs)
    if not n:
        return math.nan, 0.0
    spread = gained + lost - (gained - lost) ** 2 / n
    return (gained - lost) / n, 1.96 * math.sqrt(spread) / n


def times(groups, records):
    for name, ours, floor in pairs(groups, "plain", "floor"):
        high = 1.3 * floor["seconds"] + 2
        what = "1.3 x (start-up and one forward pass) + 2 s"
        yield f"{name}, plain seconds", *most(ours["seconds"], high, what)
    starts = [r["seconds"] for r in records if r["method"] == "import"]
    for name, again in pairs(groups, "again") if starts else ():
        high = 2 * statistics.median(starts) + 1
        yield f"{name}, again seconds", *most(again["seconds"], high, "2 x import torch + 1 s")


def least(value, bound, what):
    return value >= bound, f"{value:.4f}, at least {bound:.4f}" + (f" ({what})" if what else "")


def most(value, bound, what):
    return value <= bound, f"{value:.4f}, at most {bound:.4f}" + (f" ({what})" if what else "")
