"""One turn of bench/defaults.py: one method on one pair, a process of its own, and its figures."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import sets

HERE = Path(__file__).resolve().parent
XFER = {"plain": [], "again": [], "lp_ft": ["freeze=lp_ft"], "lora": ["freeze=lora"]}
SCRIPTS = {"sklearn": "sklearn_fit.py", "fastai": "fastai_fit.py", "lightning": "lightning_fit.py"}
METHODS = (*XFER, *SCRIPTS, "floor", "import")
"""``again`` is the plain command once more, in the same folder: the features that the first one
computed are cached, and the files that it exported are there."""


class Turn:
    """Where and with what one pair is measured."""

    def __init__(self, options, case, work):
        self.options, self.case = options, case
        self.work = work / f"{case['data']}-{case['split']}-{case['network']}".replace(" ", "_")
        self.work.mkdir(parents=True, exist_ok=True)

    def process(self, command, **environment):
        """Wall seconds of a process; what it printed is in turn.log, an error is raised."""
        given = {**os.environ, **environment}
        if self.options.device == "cpu":
            given["CUDA_VISIBLE_DEVICES"] = ""
        log = self.work / "turn.log"
        with log.open("w") as stream:
            began = time.perf_counter()
            done = subprocess.run(
                command,
                cwd=self.work,
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=self.options.timeout,
                check=False,
            )
        if done.returncode:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"exit {done.returncode}: {' '.join(last)[:200]}")
        return time.perf_counter() - began

    def command(self, *more):
        """What a user would type, and nothing more on the published split and a CPU."""
        words = [f"data.root={self.case['root']}", *sets.overrides(self.case["network"])]
        words += ["trainer=gpu"] if self.options.device == "gpu" else []
        words += [f"seed={self.case['seed']}"] if self.case["seed"] else []
        return [sys.executable, "-m", "xfer", *words, *more]

    def xfer(self, method, keep_cache):
        """The figures of one of xfer's commands, as its result.json has them."""
        cache = self.work / ("cache" if method in ("plain", "again") else "cache_other")
        if not keep_cache:
            shutil.rmtree(cache, ignore_errors=True)
            shutil.rmtree(self.work / "outputs", ignore_errors=True)
        seconds = self.process(self.command(*XFER[method]), XFER_CACHE=str(cache))
        files = (self.work / "outputs").glob("*/*/result.json")
        file = max(files, key=lambda file: file.stat().st_mtime)
        facts = json.loads(file.read_text())
        score = facts["scores"]["val"]
        with (file.parent / "predictions_val.csv").open(newline="") as stream:
            wrong = [
                row["path"] for row in csv.DictReader(stream) if row["label"] != row["prediction"]
            ]
        return {
            **{"seconds": seconds, "n": score["n"], "acc": score["acc"], "loss": score["loss"]},
            **{"ece": score["ece"], "precision": facts["precision"], "timing": facts["timing"]},
            "wrong": sorted("/".join(Path(path).parts[-2:]) for path in wrong),
        }

    def job(self, bf16=False):
        """Writes the job for a tool that does not know xfer; the recipe is that of xfer's plan."""
        plan = self.work / "plan" / "plan.json"
        if not plan.is_file():
            shutil.rmtree(plan.parent, ignore_errors=True)
            self.process(self.command("stages=[]", f"run.dir={plan.parent}"))
        facts = {"recipe": json.loads(plan.read_text())["input"], "bf16": bf16}
        facts |= {"root": self.case["root"], "seed": self.case["seed"] + self.case["round"]}
        facts |= {"device": self.options.device, **sets.NETWORKS[self.case["network"]]}
        (self.work / "job.json").write_text(json.dumps(facts))

    def script(self, method):
        """The figures of another tool, from what it predicted."""
        self.job()
        python = self.options.fastai_python if method == "fastai" else sys.executable
        (self.work / "answer.json").unlink(missing_ok=True)
        command = [python, str(HERE / SCRIPTS[method]), "job.json", "answer.json"]
        # The environment of fastai has its own packages and none of this tree's.
        environment = {"PYTHONPATH": ""} if method == "fastai" else {}
        seconds = self.process(command, **environment)
        return {"seconds": seconds, **scores(json.loads((self.work / "answer.json").read_text()))}

    def take(self, method, precision):
        """The figures of ``method``; ``precision`` is what the plain command computed in."""
        if method == "import":
            return {"seconds": self.process([sys.executable, "-c", "import torch"])}
        if method == "floor":
            self.job(bf16="bf16" in precision)
            return {"seconds": self.process([sys.executable, str(HERE / "pooled.py"), "job.json"])}
        if method in SCRIPTS:
            return self.script(method)
        if method == "again" and not (self.work / "cache").is_dir():
            self.xfer("plain", keep_cache=False)
        return self.xfer(method, keep_cache=method == "again")


def scores(answer):
    """Accuracy, loss and calibration error (15 bins, as in xfer's metrics) of an answer."""
    table, labels = np.array(answer["probabilities"]), np.array(answer["labels"])
    right, sure = table.argmax(1) == labels, table.max(1)
    # A confidence of exactly 1 has a bin of its own, as torchmetrics has it.
    bins = (sure * 15).astype(int)
    gaps = [abs(right[bins == b].sum() - sure[bins == b].sum()) for b in range(16)]
    given = np.maximum(table[range(len(labels)), labels], np.finfo(float).tiny)
    return {
        "n": len(labels),
        "acc": float(right.mean()),
        "loss": float(-np.log(given).mean()),
        "ece": float(sum(gaps) / len(labels)),
        "wrong": sorted(n for n, good in zip(answer["names"], right, strict=True) if not good),
    }
