"""The plain command, freeze=lp_ft and freeze=lora against scikit-learn, fastai and Lightning.

    python bench/defaults.py [--data hymenoptera canidae digits NAME=FOLDER] [--pairs DATA:NETWORK]
        [--methods plain again ...] [--rounds 1] [--folds K --seeds S] [--device cpu|gpu]
        [--fastai-python PYTHON] [--out outputs/defaults.jsonl]
    python bench/defaults.py --report [--out outputs/defaults.jsonl]

Each method is a process of its own and seconds are wall time of the whole process; one round takes
each method once on each pair. A line is appended to ``--out`` after each turn, and what is there
already is not measured again, so that an interrupted bench goes on. ``--folds`` measures stratified
folds of all images of a set in place of its published split, ``--seeds`` times over. xfer starts
from an empty feature cache at every turn but ``again``. ``--report`` prints the tables and the
bounds, each met or not met.
"""

import argparse
import json
import os
import subprocess
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import bounds
import sets
from turns import METHODS, Turn

KEY = ("data", "split", "network", "round", "method", "device")


def cases(options, work):
    """Every folder to measure on, with every network."""
    for name in options.data:
        root, label = sets.folder(name, work), name.split("=")[0]
        splits = [("given", 0, root)]
        if options.folds:
            label = f"{label} in {options.folds} folds"
            splits = [
                (place.name, seed, place)
                for seed in range(options.seeds)
                for place in sets.folds(root, work / name.split("=")[0], options.folds, seed)
            ]
        for split, seed, place in splits:
            for network in options.networks:
                if not options.pairs or f"{name.split('=')[0]}:{network}" in options.pairs:
                    yield {
                        **{"data": label, "split": split, "seed": seed, "root": str(place)},
                        "network": network,
                    }


def read(out):
    """Every measured turn; a failed one that was measured later is left out."""
    lines = out.read_text().splitlines() if out.is_file() else []
    return list({tuple(row[k] for k in KEY): row for row in map(json.loads, lines)}.values())


def measure(options, out):
    work = out.with_suffix("").resolve()
    work.mkdir(parents=True, exist_ok=True)
    done = {tuple(row[k] for k in KEY) for row in read(out) if "failed" not in row}
    for number in range(options.rounds):
        for case in cases(options, work):
            case = {**case, "round": number, "device": options.device}
            for method in options.methods:
                key = tuple({**case, "method": method}[k] for k in KEY)
                if key not in done:
                    append(out, turn(options, case, method, work, out))


def turn(options, case, method, work, out):
    """The record of one turn; a failure is a record as well, and the bench goes on."""
    plain = [r for r in read(out) if r["method"] == "plain" and r["network"] == case["network"]]
    precision = next((r["precision"] for r in plain[::-1] if "precision" in r), "32-true")
    record = {k: v for k, v in case.items() if k != "root"} | {"method": method}
    record |= {"date": str(date.today()), "load": os.getloadavg()[0]}
    began = time.perf_counter()
    try:
        record |= Turn(options, case, work).take(method, precision)
    except (RuntimeError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        record["failed"] = f"{type(error).__name__}: {error}"[:300]
    record["turn_s"] = round(time.perf_counter() - began, 1)
    return record


def append(out, record):
    with out.open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    place = f"{record['data']} {record['split']} {record['network']} round {record['round']}"
    told = record.get("failed") or f"{record['seconds']:.1f} s"
    if "acc" in record:
        told = f"{record['acc']:.4f}, loss {record['loss']:.4f}, ece {record['ece']:.4f}, {told}"
    print(f"{place} {record['method']}: {told}", flush=True)


def parsed():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", default=list(sets.DATA))
    parser.add_argument("--networks", nargs="+", default=list(sets.NETWORKS), choices=sets.NETWORKS)
    parser.add_argument("--pairs", nargs="+", default=[], help="DATA:NETWORK, of the above")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="so many times --folds")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--fastai-python", help="a Python that has fastai")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds of one process")
    parser.add_argument("--out", type=Path, default=Path("outputs/defaults.jsonl"))
    parser.add_argument("--report", action="store_true", help="print what --out has")
    return parser.parse_args()


def main():
    options = parsed()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if not options.report:
        if "fastai" in options.methods and not options.fastai_python:
            print("fastai is left out: give --fastai-python")
            options.methods.remove("fastai")
        measure(options, options.out)
    used = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "scikit-learn"))
    print(f"\n{os.cpu_count()} cores, {used}, {date.today()}\n")
    bounds.report(read(options.out))


if __name__ == "__main__":
    main()
