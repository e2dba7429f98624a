"""What a soup is worth: the best member, the average of all members and the greedy soup, each on
the images that judge and chose none of them.

    XFER_ASSETS=ASSETS python bench/soup.py [--sets digits hymenoptera] [--draws 3]

A draw is another split of the set (``data.split_seed``) and a sweep on it of three learning rates
and two seeds, with all layers of the digits' network trained and the last stage of SqueezeNet.
Members, choosing and judging are those of ``xfer soup``, also where that refuses the soup; the last
column says whether it would have taken it. The sweeps stay in ``outputs/bench_soup``.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from xfer.config.hydra import compose_specs
from xfer.sweep.leaderboard.read_sweep import read
from xfer.sweep.soup.greedy import greedy, tables_of, verdict
from xfer.sweep.soup.members import members_of
from xfer.sweep.soup.soup_stage import AveragedNetwork, plan_soup

ASSETS = Path(os.environ.setdefault("XFER_ASSETS", "../shared/assets")).resolve()
SQUEEZENET = ASSETS / "weights/squeezenet1_0_imagenet.safetensors"
STORE = Path("outputs/bench_soup")
SETS = {
    "digits": (
        ["experiment=digits_finetune", "data.test_fraction=0.3"],
        ["optim.lr=0.01,0.02,0.05", "seed=0,1", "trainer.max_epochs=6"],
    ),
    "hymenoptera": (
        [
            f"data.root={ASSETS / 'Hymenoptera'}",
            "data.test_fraction=0.4",
            *("backbone=torchvision", "backbone.name=squeezenet1_0"),
            *("source=file", f"source.path={SQUEEZENET}"),
        ],
        [
            *("optim.lr=1e-4,3e-4,1e-3", "seed=0,1", "trainer.max_epochs=6"),
            *("freeze=last_stage", "optim=adamw", "augment=none"),
        ],
    ),
}
ROW = "{:<12} {:>4}  {:>8} {:>7} {:>7} {:>7}  {:>8}  {:>16}  {}"


def measured(name, draw):
    """A row of the table: the sweep of one draw, and what comes of its members."""
    data, varied = SETS[name]
    data = [*data, f"data.split_seed={draw}"]
    folder = STORE / f"{name}_{draw}"
    if not (folder / "leaderboard.csv").is_file():
        words = [*data, *varied, "stages=[fit,evaluate]", f"sweep.dir={folder}"]
        subprocess.run([sys.executable, "-m", "xfer", "-m", *words], check=True)
    plan = plan_soup(compose_specs([*data, "stages=[soup]", f"sweep.dir={folder}"]))
    members = {member.job: member for member in members_of(read(folder))}
    tables = tables_of(plan.dataset, plan.specs.seed)
    network = AveragedNetwork(plan, members, tables)
    tries = greedy(network.alone(), network.taste)
    soup = tuple(tried.job for tried in tries if tried.joins)
    every = tuple(tried.job for tried in tries)

    def right(jobs):
        answers = network.answers(jobs, tables.judging)
        return answers.logits.argmax(axis=1) == answers.labels

    best, uniform, greedily = right((every[0],)), right(every), right(soup)
    found = verdict(greedily, best)
    low, high = (f"{100 * end:+.1f}" for end in found.ci95)
    taken = "taken" if len(soup) > 1 and found.pays(0.0) else "refused"
    scores = [float(hits.mean()) for hits in (best, uniform, greedily)]
    texts = [f"{score:.4f}" for score in scores]
    gain = f"{100 * found.score:+.1f}"
    members = f"{len(soup)} of {len(every)}"
    print(ROW.format(name, draw, members, *texts, gain, f"{low} to {high}", taken), flush=True)
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--sets", nargs="*", choices=list(SETS), default=list(SETS))
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    head = ("set", "draw", "members", "best", "uniform", "greedy", "points", "95 % interval", "")
    print(ROW.format(*head))
    for name in options.sets:
        means = np.mean([measured(name, draw) for draw in range(options.draws)], axis=0)
        print(ROW.format(name, "mean", "", *(f"{m:.4f}" for m in means), "", "", ""))


if __name__ == "__main__":
    main()
