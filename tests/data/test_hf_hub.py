"""Data sets of a hub by their names: which commit is taken, and who says so."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from hub_server import ONE, TWO, HubServer
from PIL import Image

import xfer
from xfer.core.errors import DataError
from xfer.core.types import Dataset
from xfer.data import HuggingFace

datasets = pytest.importorskip("datasets", reason="the library datasets is not installed")

PETS = "datasets/me/pets"


@pytest.fixture
def pets(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A hub with two commits of a data set, and the library's own cache."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's pauses
    datasets.disable_progress_bars()
    add(hub, ONE)
    return hub


def add(hub: HubServer, commit: str, first: int = 0) -> None:
    for split, count in (("train", 8), ("validation", 4)):
        hub.add(parquet(count, first), PETS, commit, f"data/{split}-00000-of-00001.parquet")
        first += count


def parquet(count: int, first: int) -> bytes:
    """So many small images of two classes, as ``push_to_hub`` writes them."""
    images = []
    for i in range(first, first + count):
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(png := io.BytesIO(), "PNG")
        images.append({"bytes": png.getvalue(), "path": f"{i}.png"})
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    columns = {"image": images, "label": [i % 2 for i in range(count)]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(out := io.BytesIO())
    return out.getvalue()


def loaded(**how: str) -> Dataset:
    return HuggingFace(name="me/pets", **how).dataset(training=True)


def digest(data: Dataset) -> str | None:
    return data.splits["train"].sha256


def refusal(**how: str) -> str:
    with pytest.raises(DataError) as caught:
        loaded(**how)
    assert caught.value.number == 336 and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_name_is_taken_at_the_commit_that_the_plan_names(
    pets: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["backbone=digits_resnet", "source=digits_0_4", "data.batch_size=4"]
    xfer.run(overrides=["data=hf", "data.name=me/pets", *model, "stages=[fit]", "run.dir=run"])
    facts = json.loads(Path("run/plan.json").read_text())
    assert facts["classes"] == ["cat", "dog"] and facts["splits"]["val"]["n"] == 4
    (said,) = [remark for remark in facts["remarks"] if "me/pets" in remark]
    (typed,) = re.findall(r"data\.revision=(\w+)", said)
    add(pets, TWO, 100)
    later, first = loaded(), loaded(revision=typed)
    assert typed == ONE and digest(first) == facts["splits"]["train"]["sha256"] != digest(later)
    assert f"data.revision={TWO}" in later.remarks[0]
    assert not [remark for remark in first.remarks if "data.revision" in remark]


def test_a_commit_of_the_cache_needs_no_hub_and_is_no_other(
    pets: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    one = loaded()
    add(pets, TWO, 100)
    two = loaded()
    asked = len(pets.asked)
    assert digest(loaded(revision=ONE)) == digest(one) and len(pets.asked) == asked
    pets.close()
    assert digest(loaded(revision=ONE)) == digest(one)
    with caplog.at_level(logging.WARNING, "xfer"):
        last = loaded()
    assert digest(last) == digest(two)
    assert f"me/pets is taken from the cache as of commit {TWO}" in caplog.text
    for revision in ("3" * 40, "v1"):
        said = refusal(revision=revision)
        assert f"the cache has commit {TWO}, not '{revision}'" in said
        (typed,) = re.findall(r"data\.revision=(\w+)", said)
        assert digest(loaded(revision=typed)) == digest(two)


def test_a_revision_that_is_not_cached_is_fetched_and_is_no_other(pets: HubServer) -> None:
    add(pets, TWO, 100)
    pets.refs["datasets/me/pets", "v1"] = ONE
    old = loaded(revision="v1")
    assert f"data.revision={ONE}" in old.remarks[0]
    assert digest(loaded(revision=ONE)) == digest(old) != digest(loaded())


@pytest.mark.parametrize("cached", [True, False])
def test_a_refusal_is_not_hidden_by_the_cache(pets: HubServer, cached: bool) -> None:
    if cached:
        loaded()
    assert "there is no revision 'v9'. Fix: give another data.revision" in refusal(revision="v9")
    for status, code in ((404, "RepoNotFound"), (403, "GatedRepo"), (401, "")):
        pets.refusals[PETS] = (status, code)
        assert f"not for you (HTTP {status}). Fix: check the name, or set HF_TOKEN" in refusal()


def test_a_private_data_set_is_opened_with_the_token(
    pets: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pets.private.add(PETS)
    assert "HTTP 401" in refusal()
    monkeypatch.setenv("HF_TOKEN", pets.login())
    assert len(loaded().splits["train"]) == 8


def test_without_hub_and_cache_one_line_says_so(pets: HubServer) -> None:
    pets.close()
    assert re.search(r"me/pets: cannot be opened by datasets \(.*refused; ", refusal())


def test_a_transfer_that_is_cut_goes_on_where_it_stopped_and_shows_no_signature(
    pets: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    pets.cuts = iter([1000])
    assert len(loaded().splits["train"]) == 8
    assert [asked for asked in pets.asked if asked.endswith(" bytes=1000-")]
    assert "Signature" not in caplog.text


def test_an_address_in_an_error_is_shown_without_its_signature(pets: HubServer) -> None:
    pets.refusals["lfs"] = (403, "")
    said = refusal()
    assert f"{pets.store}/lfs/" in said and "?" not in said and "secret" not in said


def test_a_hub_that_is_out_of_order_is_as_one_that_does_not_answer(
    pets: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    pets.refusals[PETS] = (503, "")
    assert "me/pets: cannot be opened by datasets (" in refusal()
    del pets.refusals[PETS]
    first = loaded()
    add(pets, TWO, 100)
    pets.refusals[PETS] = (503, "")
    with caplog.at_level(logging.WARNING, "xfer"):
        assert digest(loaded()) == digest(first)
    assert re.search(
        rf"does not answer \(.*503.*is taken from the cache as of commit {ONE}", caplog.text
    )


def test_a_data_set_in_memory_is_refused_and_the_remedy_works(
    pets: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 1 << 30)
        assert "is held in memory by datasets" in (said := refusal())
        assert "Fix: unset HF_DATASETS_IN_MEMORY_MAX_SIZE" in said
    assert len(loaded().splits["train"]) == 8
