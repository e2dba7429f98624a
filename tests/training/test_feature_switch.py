"""Training on features gives what training on images gives, and refuses what it cannot."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import warm
from pictures import folders
from runs import assert_same, finish, in_an_epoch, kill, only_run, start, wait_for

import xfer
from xfer.config.hydra import compose_specs
from xfer.core.errors import ConfigError, OutputError
from xfer.core.files import file_sha256
from xfer.core.torch_file import load_tensors
from xfer.models.network import assemble
from xfer.plan.make import make_plan
from xfer.training.exact import at_rest
from xfer.training.features.feature_loader import CachedFeatures
from xfer.training.features.feature_switch import cacheable
from xfer.training.features.find_cut import Refusal

SHORT = ["stages=[fit,evaluate]", "augment=standard", "trainer.max_epochs=2", "optim.lr=0.02"]
# 291 images to train on and 72 of val: ten batches, the last of them of three.
SHORT += ["data.digits=[5,6]", "data.workers=0"]

VAL = 72
ONE = ["features=require", "features.views=1"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A run on features of one view, and the cache that it has left."""
    place = tmp_path_factory.mktemp("computed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("XFER_CACHE", str(place / "cache"))
        return fit(*ONE).resolve(), place / "cache"


@pytest.fixture
def plain(computed, own_cache):
    """That run, whose features are in the cache."""
    run, cache = computed
    shutil.copytree(cache, own_cache, dirs_exist_ok=True)
    return run


def fit(*options):
    return xfer.run("digits_sgd", [*SHORT, *options]).folder


def test_where_no_cache_can_be_written_the_remedy_is_a_folder_for_features(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XFER_CACHE", str(tmp_path / "file" / "cache"))
    short = [*ONE, "stages=[fit]", "trainer.max_epochs=1"]
    with pytest.raises(OutputError, match=r"E912: .*choose features\.dir=DIR, or features=never"):
        fit(*short)
    fit(*short, "features.dir=mine")


def facts(run):
    return json.loads((run / "result.json").read_text())["features"]


VIEWS = ["features=require", "features.views=max"]
HEAD_ONLY = ["freeze=head_only", "head=dropout"]
LAST_STAGE = ["freeze=last_stage", "trainer.ema_decay=0.9"]
PROBED = ["freeze=lp_ft", "freeze.probe_epochs=1"]


# The first phase of a probe is a head alone. What the two leave out is slow.
@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ([*LAST_STAGE, "trainer.accumulate=2"], 2),
        ([*PROBED, "head=dropout", "trainer.clip_norm=1"], 0),
        pytest.param(HEAD_ONLY, 0, marks=pytest.mark.slow),
        pytest.param(HEAD_ONLY, 2, marks=pytest.mark.slow),
        pytest.param([*LAST_STAGE, "trainer.accumulate=2"], 0, marks=pytest.mark.slow),
        pytest.param([*PROBED, "trainer.clip_norm=1"], 2, marks=pytest.mark.slow),
    ],
)
def test_as_many_views_as_epochs_train_bit_for_bit_as_without(options, workers):
    assert_as_without([*options, f"data.workers={workers}"])


@pytest.mark.parametrize(
    "options",
    [
        PROBED,  # both of the others in turn
        pytest.param(HEAD_ONLY, marks=pytest.mark.slow),
        pytest.param(LAST_STAGE, marks=pytest.mark.slow),
    ],
)
def test_in_half_precision_they_train_bit_for_bit_as_without_too(options):
    half = [*options, "trainer.precision=bf16-mixed"]
    kept = assert_as_without(half)
    assert json.loads((kept / "result.json").read_text())["precision"] == "bf16-mixed"
    assert facts(kept)["exact"] is True
    again = fit(*half, *VIEWS)
    assert facts(again)["hit"] is True
    assert_same(again, kept)


def assert_as_without(options):
    """Without features and with new ones; the run with new ones."""
    plain = fit(*options, "features=never")
    kept = fit(*options, *VIEWS)
    assert facts(plain)["cached"] is False
    assert facts(kept)["cached"] is True and facts(kept)["hit"] is False
    assert facts(kept)["views"] == 2
    assert_same(kept, plain)
    return kept


def test_one_view_is_the_evaluation_view(computed):
    plain, kept = fit("augment=none", "features=never"), computed[0]
    assert facts(kept)["views"] == 1
    ours, theirs = (load_tensors(r / "checkpoints/last.ckpt")["state_dict"] for r in (plain, kept))
    # Chunks in the order of the files, where training has them shuffled: equal but for rounding.
    assert all(ours[k].allclose(v, atol=1e-5) for k, v in theirs.items())


def test_features_serve_every_run_that_differs_after_the_cut_alone(plain):
    others = ["optim.lr=0.5", "head=mlp", "schedule=cosine", "seed=3"]
    assert facts(fit(*ONE, *others))["hit"] is True


def test_other_images_or_another_recipe_are_other_features(plain):
    assert facts(fit(*ONE, "data.digits=[7,8]"))["hit"] is False


def only_entry(own_cache):
    (entry,) = [p for p in (own_cache / "features").glob("*.npy") if p.stat().st_size > 50_000]
    return entry


def test_a_kept_cut_that_was_changed_is_found_again(own_cache, plain):
    (kept,) = (own_cache / "features" / "cuts").glob("*.json")
    proved = json.loads(kept.read_text())
    changed = json.loads(kept.read_text())
    changed["cut"]["parts"][0]["shape"] = [3]
    kept.write_text(json.dumps(changed))
    assert_same(fit(*ONE), plain)
    assert json.loads(kept.read_text()) == proved


# What may have happened to a file, test_features_store.py has.
@pytest.mark.parametrize(
    "harm", ["flipped", *(pytest.param(h, marks=pytest.mark.slow) for h in ("cut", "foreign"))]
)
def test_an_entry_that_is_not_what_it_was_is_computed_again(own_cache, plain, harm):
    entry = only_entry(own_cache)
    content = bytearray(entry.read_bytes())
    if harm == "flipped":
        content[5000] ^= 1
    if harm == "cut":
        del content[5000:]
    if harm == "foreign":
        content[:] = b"\x93NUMPY" + bytes(len(content) - 6)
    entry.write_bytes(content)
    kept = fit(*ONE)
    assert facts(kept)["hit"] is False
    assert_same(kept, plain)


def vouched_for(entry, change):
    """Change the array of an entry, and have its manifest say so."""
    np.save(entry, change(np.load(entry)))
    sound = json.loads((manifest := entry.with_suffix(".json")).read_text())
    manifest.write_text(json.dumps(sound | {"sha256": file_sha256(entry)}))


def test_an_entry_of_another_network_under_a_good_manifest_is_computed_again(own_cache, plain):
    vouched_for(only_entry(own_cache), np.zeros_like)
    kept = fit(*ONE)
    assert facts(kept)["hit"] is False
    assert "computing it again" in (kept / "run.log").read_text()
    assert_same(kept, plain)


def test_validation_in_another_order_under_a_good_manifest_is_computed_again(own_cache, plain):
    for entry in (own_cache / "features").glob("*.npy"):
        if len(np.load(entry, mmap_mode="r")) == VAL:
            vouched_for(entry, lambda kept: np.concatenate([kept[:1], kept[:0:-1]]))
    again = fit(*ONE)
    assert facts(again)["hit"] is False
    assert "computing it again" in (again / "run.log").read_text()
    assert_same(again, plain)


def test_the_difference_to_features_computed_again_is_a_share_of_the_largest(own_cache, plain):
    for entry in (own_cache / "features").glob("*.npy"):
        vouched_for(entry, lambda kept: kept * np.float32(1.0001))
    said = facts(again := fit(*ONE))
    assert said["hit"] and said["difference"] == pytest.approx(1e-4, rel=0.02)
    assert "differ by at most 1.0e-04 of the largest" in (again / "run.log").read_text()


def test_what_cannot_be_kept_is_said_by_auto_and_refused_by_require():
    run = fit("augment=strong", "augment.mixup=0.2", "trainer.max_epochs=1", "features=auto")
    assert facts(run)["cached"] is False
    assert "features are not cached: augment mixes whole images" in (run / "run.log").read_text()
    with pytest.raises(ConfigError, match=r"cannot be cached: augment mixes.*features=auto"):
        fit("augment=strong", "augment.mixup=0.2", "trainer.max_epochs=1", "features=require")


def reason(*options):
    """Why a fit would keep no features, or nothing where it would; of a network at rest."""
    plan = make_plan(compose_specs(["experiment=digits_sgd", *SHORT, "features=auto", *options]))
    frozen = at_rest(plan, assemble(plan.parts, plan.state))
    found = cacheable(plan, frozen, plan.specs.features)
    return found.reason if isinstance(found, Refusal) else ""


def test_images_that_come_several_times_an_epoch_are_not_kept_where_each_is_another():
    assert reason("data.sampler=balanced").startswith("data.sampler=balanced augments an image")
    for same in ("features.views=1", "augment=none"):  # an image is the same each time
        assert reason("data.sampler=balanced", same) == ""
    assert facts(fit("data.sampler=balanced", *ONE, "trainer.max_epochs=1"))["cached"] is True


def test_views_that_would_push_each_other_out_are_not_kept():
    said = reason("features.views=max", "features.max_gb=0.0001")
    assert said.endswith("more than features.max_gb=0.0001")


def test_a_prefix_whose_statistics_adapt_is_not_cut():
    assert reason("freeze.batch_norm=adapt") == "freeze.batch_norm=adapt moves statistics"


def test_features_that_another_process_has_removed_still_count(monkeypatch, own_cache, computed):
    enter = CachedFeatures.prepare

    def prepare(self, epoch):
        enter(self, epoch)
        for file in (own_cache / "features").glob("*.npy"):
            file.unlink()

    whole = facts(computed[0])["bytes"]
    monkeypatch.setattr(CachedFeatures, "prepare", prepare)
    assert facts(fit(*ONE))["bytes"] == whole > 0


def test_a_prefix_that_trains_is_not_cut():
    with pytest.raises(ConfigError, match="cannot be cached"):
        fit("features=require", "freeze=none")


def test_two_processes_compute_one_entry(tmp_path, own_cache):
    options = [*SHORT, "experiment=digits_sgd", *ONE, "trainer.max_epochs=1"]
    runs = [warm.start(tmp_path, *options, f"run.dir={tmp_path / name}") for name in ("a", "b")]
    for run in runs:
        finish(run)
    assert len(list((own_cache / "features").glob("*.npy"))) == 2
    hits = sorted(facts(tmp_path / name)["hit"] for name in ("a", "b"))
    assert hits[0] is False
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_run_killed_on_features_ends_as_the_whole_one(tmp_path):
    options = ["freeze=head_only", "augment=standard", "features=require", "features.views=max"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    finish(start(tmp_path / "whole", *options))
    first = start(tmp_path / "killed", *options, "checkpoint.resume=auto", XFER_CACHE=str(tmp_path))
    wait_for(lambda: in_an_epoch(tmp_path / "killed", 23), first)
    kill(first)
    second = start(
        tmp_path / "killed", *options, "checkpoint.resume=auto", XFER_CACHE=str(tmp_path)
    )
    finish(second)
    assert_same(only_run(tmp_path / "killed"), only_run(tmp_path / "whole"))


# Kills itself behind the save of epoch LAST.
KILLED = """
import os, signal, sys
import xfer.training.callbacks.timeline
from xfer.__main__ import main

whole = xfer.training.callbacks.timeline.Timeline.on_train_epoch_end

def killed(self, trainer, module):
    whole(self, trainer, module)
    if len(self.history.rows) == LAST:
        os.kill(os.getpid(), signal.SIGKILL)

xfer.training.callbacks.timeline.Timeline.on_train_epoch_end = killed
sys.argv = ["xfer", "experiment=digits_sgd", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("last", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_behind_an_epoch_says_the_same_of_its_features(tmp_path, last):
    options = [*SHORT, "features=require", "features.views=max", "checkpoint.resume=auto"]
    script = KILLED.replace("LAST", str(last))
    killed = warm.start(tmp_path, *options, "run.dir=killed", script=script)
    output, _ = killed.communicate()
    assert killed.returncode == -9, output
    run = fit(*options, "run.dir=killed")
    shutil.rmtree(os.environ["XFER_CACHE"])
    whole = fit(*options, "run.dir=whole")
    assert_same(run, whole)
    said, expected = facts(run), facts(whole)
    if last == 1:  # only the views of the epochs that were left are on its mind
        assert said.pop("bytes") < expected.pop("bytes")
        # The largest of fewer views.
        assert said.pop("difference") <= expected.pop("difference")
    assert said == expected and said["cached"] is True and said["hit"] is False


FAMILIES = {
    "resnet18": ["backbone=timm", "backbone.name=resnet18"],
    "squeezenet": ["backbone=torchvision", "backbone.name=squeezenet1_0"],
    "vit": ["backbone=timm", "backbone.name=vit_tiny_patch16_224"],
    "googlenet": ["backbone=torchvision", "backbone.name=googlenet"],
}


def small(root, *options):
    """A run on nine pictures for training and seven for val, in batches of four."""
    folders(root / "train", {"a": 5, "b": 4})
    folders(root / "val", {"a": 4, "b": 3})
    fixed = [f"data.root={root}", "source=none", "freeze=head_only", "data.leakage=ignore"]
    sizes = ["data.batch_size=4", "data.eval_batch_size=4", "data.workers=0"]
    once = ["trainer.max_epochs=1", "optim.lr=0.01", "backbone.image_size=64"]
    return xfer.run(None, ["experiment=default", *fixed, *sizes, *once, *options]).folder


def no_images(*_):
    raise AssertionError("images are decoded again")


# The digits have a resnet, half precision below has a squeezenet, and the cut of a googlenet is
# proved in test_features_cut.py.
SLOW = [pytest.param(f, marks=pytest.mark.slow) for f in ("resnet18", "squeezenet", "googlenet")]


@pytest.mark.parametrize("family", ["vit", *SLOW])
def test_what_was_trained_on_features_is_evaluated_on_them_bit_for_bit(
    family, tmp_path, monkeypatch
):
    root, options = tmp_path / "pictures", FAMILIES[family]
    with monkeypatch.context() as patch:
        patch.setattr("xfer.training.inference.answered", no_images)
        kept = small(root, *options, *ONE, "stages=[fit,evaluate]")
    again = small(root, *options, "stages=[evaluate]", f"checkpoint.path={kept}")
    ours, theirs = ((run / "predictions_val.csv").read_bytes() for run in (kept, again))
    assert ours == theirs and ours.count(b"\n") == 8


def test_a_fit_in_half_precision_is_validated_and_scored_in_full(tmp_path):
    """The best value of the fit is the score of the same weights on the same images."""
    root, half = tmp_path / "pictures", "trainer.precision=bf16-mixed"
    for features in ("never", "require"):
        options = [*FAMILIES["squeezenet"], half, f"features={features}"]
        run = small(root, *options, "trainer.max_epochs=2", "stages=[fit,evaluate]")
        found = json.loads((run / "result.json").read_text())
        assert found["precision"] == "bf16-mixed"
        assert found["best"]["value"] == found["scores"]["val"]["acc"]
        with (run / "metrics.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        loss = float(rows[found["best"]["epoch"] - 1]["val_loss"])
        assert found["scores"]["val"]["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.channels_last=false"],
        ["freeze=lp_ft", "freeze.probe_epochs=1", "trainer.max_epochs=2", "features=auto"],
    ],
    ids=["other layout", "no features in the end"],
)
def test_features_that_are_not_what_evaluation_would_compute_do_not_serve(
    options, tmp_path, monkeypatch
):
    monkeypatch.setattr("xfer.training.inference.answered", no_images)
    with pytest.raises(AssertionError, match="decoded again"):
        small(tmp_path / "pictures", *FAMILIES["squeezenet"], *ONE, *options)


def test_features_serve_no_other_weights_and_no_other_images(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "xfer.training.features.feature_loader.CachedFeatures.serve",
        lambda *given: seen.append(given) or False,
    )
    small(tmp_path / "pictures", *FAMILIES["squeezenet"], *ONE, "stages=[fit,evaluate]")
    monkeypatch.undo()
    ((kept, net, samples, size, device),) = seen
    assert kept.serve(net, samples, size, device)
    assert not kept.serve(net, samples, size + 1, device)
    assert not kept.serve(net, kept.work.splits["train"], size, device)
    net.get_parameter("features.0.weight").data[0, 0, 0, 0] += 1e-6
    assert not kept.serve(net, samples, size, device)
