"""Weights from hubs: pinned, from the cache without a network, refused in one line."""

from __future__ import annotations

import hashlib
import logging
import os
from itertools import repeat
from pathlib import Path

import pytest
import torch
import warm
from conftest import Server
from hub_server import ONE, RESNET, TWO
from safetensors.torch import save

from xfer.core.errors import ConfigError, OutputError, SafetyError, WeightsError
from xfer.models.backbone import Timm, Torchvision
from xfer.weights.content import Weights
from xfer.weights.hub import imagenet, libraries
from xfer.weights.source.hub import Hub

FILE = "model.safetensors"
BACKBONE = Timm("test_resnet")


def state(seed: int = 0, name: str = "test_resnet") -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(seed)
    return dict(timm.create_model(name).state_dict())


def same(weights: Weights, tensors: dict[str, torch.Tensor]) -> bool:
    assert weights.state is not None and weights.state.keys() == tensors.keys()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in weights.state.items())


# timm


def test_timms_weights_are_pinned_to_the_commit_and_come_from_the_cache_after(hub):
    data = save(state(1))
    hub.add(data)
    weights = Hub().load(BACKBONE)
    assert same(weights, state(1)) and weights.sha256 == hashlib.sha256(data).hexdigest()
    assert weights.origin == "timm:test_resnet.r160_in1k" and weights.pinned == {"revision": ONE}
    assert weights.facts["repository"] == RESNET and weights.facts["revision"] == ONE
    assert weights.input is not None and weights.input.size == (160, 160)
    hub.add(save(state(2)), commit=TWO)
    asked = len(hub.asked)
    assert same(Hub(**weights.pinned).load(BACKBONE), state(1))
    assert len(hub.asked) == asked, "a cached commit needs no request"
    assert same(Hub().load(BACKBONE), state(2)), "main has moved on"
    hub.close()
    assert same(Hub(revision=ONE).load(BACKBONE), state(1))


def test_without_a_network_the_last_known_main_is_taken_and_told(hub, caplog):
    hub.add(save(state(1)))
    Hub().load(BACKBONE)
    hub.close()
    with caplog.at_level(logging.WARNING, "xfer"):
        weights = Hub().load(BACKBONE)
    assert same(weights, state(1)) and weights.pinned == {"revision": ONE}
    assert f"from the cache as of commit {ONE}" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "xfer"):
        Hub(local_files_only=True).load(BACKBONE)
    assert not caplog.records


def test_a_hub_that_is_out_of_order_is_as_one_that_is_not_there(hub, caplog):
    hub.add(save(state(1)))
    Hub().load(BACKBONE)
    hub.refusals[RESNET] = (503, "")
    with caplog.at_level(logging.WARNING, "xfer"):
        assert same(Hub().load(BACKBONE), state(1))
    assert "cannot be reached" in caplog.text and "503" in caplog.text


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), TimeoutError(110, "late")])
def test_a_broken_connection_is_none_and_no_fault_of_the_disk(hub, monkeypatch, caplog, error):
    hub.add(save(state(1)))
    Hub().load(BACKBONE)

    def breaks(url: str) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", breaks)
    with caplog.at_level(logging.WARNING, "xfer"):
        assert same(Hub().load(BACKBONE), state(1))
    assert f"the hub cannot be reached ({type(error).__name__}: " in caplog.text
    with pytest.raises(WeightsError, match="is not in the cache and cannot be downloaded"):
        Hub(revision="v1").load(BACKBONE)


def test_a_refusal_is_not_hidden_by_the_cache(hub):
    hub.add(save(state(1)))
    Hub().load(BACKBONE)
    hub.refusals[RESNET] = (403, "GatedRepo")
    with pytest.raises(WeightsError, match="gated"):
        Hub().load(BACKBONE)
    assert same(Hub(local_files_only=True).load(BACKBONE), state(1))


def test_the_pickle_is_taken_where_there_are_no_safetensors(hub, tmp_path):
    torch.save(state(1), tmp_path / "w")
    hub.add((tmp_path / "w").read_bytes(), name="pytorch_model.bin")
    weights = Hub().load(BACKBONE)
    assert same(weights, state(1)) and weights.facts["file"] == "pytorch_model.bin"
    hub.close()
    assert same(Hub().load(BACKBONE), state(1))


def test_timms_own_functions_fit_the_file_to_the_network(hub):
    tensors = state(1, "test_vit")
    # Heads of before the release of timm's own; its filter leaves them out.
    extra = {"pre_logits.fc.weight": torch.ones(3, 3)}
    hub.add(save(tensors | extra), repo="timm/test_vit.r160_in1k")
    assert same(Hub().load(Timm("test_vit")), tensors)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil",)


def test_a_pickle_that_asks_for_code_is_refused(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "w")
    hub.add((tmp_path / "w").read_bytes(), name="pytorch_model.bin")
    with pytest.raises(SafetyError, match=r"timm:test_resnet.*system") as caught:
        Hub().load(BACKBONE)
    assert caught.value.exit == 6 and not (tmp_path / "evil").exists()
    assert "weights_only=False" not in str(caught.value)


BAD = {
    "cut": save({"a": torch.ones(1000)})[:-9],
    "web page": b"<!doctype html><html></html>",
    "of another network": save({"a": torch.ones(3)}),
    "pickle of nothing": b"\x80\x02}q\x00.",
    "empty": b"",
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_does_not_fit_is_told_in_one_line(hub, case, name):
    hub.add(BAD[case], name=name)
    with pytest.raises((WeightsError, SafetyError), match=r"timm:test_resnet") as caught:
        Hub().load(BACKBONE)
    assert "\n" not in str(caught.value) and "weights_only=False" not in str(caught.value)


def test_a_file_of_the_cache_that_has_changed_is_told(hub, tmp_path):
    hub.add(save(state(1)))
    Hub().load(BACKBONE)
    (blob,) = (tmp_path / "hf").glob("models--*/blobs/*")
    blob.write_bytes(save(state(2)))
    with pytest.raises(WeightsError, match=f"sha256 is .*, expected {blob.name}.*delete") as told:
        Hub(revision=ONE).load(BACKBONE)
    assert told.value.number == 451


@pytest.mark.parametrize(
    ("tag", "known"),
    [
        ("resnet50.a1_in1k", True),
        ("convnext_tiny.in12k_ft_in1k", True),
        ("vit_tiny_patch16_224.augreg_in21k", False),
        ("beitv2_base_patch16_224.in1k_ft_in22k", False),
        ("vit_base_patch16_clip_224.openai", False),
    ],
)
def test_imagenets_classes_are_claimed_only_where_the_tag_says_so(tag, known):
    import timm

    assert libraries.has_imagenet_classes(timm.get_pretrained_cfg(tag)) == known


# Refusals


REFUSALS = {
    "no such repository": ((404, "RepoNotFound"), 453, "no such repository"),
    "private": ((401, "RepoNotFound"), 453, "private"),
    "gated": ((403, "GatedRepo"), 452, "gated"),
    "gated for strangers": ((401, "GatedRepo"), 452, "gated"),
    "no such revision": ((404, "RevisionNotFound"), 456, "no revision 'main'"),
    "no such file": ((404, "EntryNotFound"), 457, "no such file"),
    "wrong token": ((401, "Invalid credentials in Authorization header"), 458, "HTTP 401"),
    "forbidden": ((403, ""), 459, "HTTP 403"),
    "not found": ((404, ""), 457, "HTTP 404"),
    "no commit": ((200, ""), 411, "not a hub"),
    "out of order": ((500, ""), 411, "500"),
}


@pytest.mark.parametrize("path", [None, f"hf://{RESNET}/{FILE}"])
@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_refuses_is_told_in_one_line(hub, tmp_path, case, path):
    hub.refusals[RESNET], number, told = REFUSALS[case]
    with pytest.raises(WeightsError, match=told) as caught:
        Hub(path=path).load(BACKBONE)
    assert (caught.value.number, caught.value.exit) == (number, 4)
    assert "\n" not in str(caught.value) and hub.url not in str(caught.value)
    assert not list((tmp_path / "hf").glob("models--*/snapshots/*"))


@pytest.mark.parametrize("commit", ["../../../evil", "/evil", "main", "A" * 40])
def test_a_commit_that_is_none_is_not_written_anywhere(hub, tmp_path, commit):
    hub.add(save(state(1)), commit=commit)
    with pytest.raises(WeightsError, match="not in the cache and"):
        Hub().load(BACKBONE)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_transfer_that_is_always_cut_leaves_no_file_and_one_line(
    hub, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's pauses
    hub.add(save(state(1)))
    hub.cuts = repeat(1000)
    with pytest.raises(WeightsError, match="not in the cache and") as told:
        Hub().load(BACKBONE)
    assert "\n" not in str(told.value) and hub.url not in "".join(capfd.readouterr())
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    hub.cuts = iter(())
    assert same(Hub().load(BACKBONE), state(1))


def test_a_transfer_that_is_cut_goes_on_where_it_stopped(hub, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 5000)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add(save(state(1)))
    hub.cuts = iter([20_000, 20_000])
    assert same(Hub().load(BACKBONE), state(1))
    fetched = [asked for asked in hub.asked if asked.startswith("GET /lfs/")]
    wanted = ["bytes=20000-", "bytes=40000-"]
    assert [asked.rpartition(" ")[2] for asked in fetched[1:]] == wanted
    assert "Signature" not in caplog.text


def test_a_private_repository_is_opened_with_the_token_which_the_store_never_sees(hub, monkeypatch):
    hub.private.add(RESNET)
    hub.add(save(state(1)))
    with pytest.raises(WeightsError, match=r"or it is private.*set HF_TOKEN"):
        Hub().load(BACKBONE)
    monkeypatch.setenv("HF_TOKEN", hub.login(name="timm"))
    assert same(Hub().load(BACKBONE), state(1))
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(WeightsError, match="wants a valid token") as told:
        Hub().load(BACKBONE)
    assert told.value.number == 458


def test_a_cache_that_cannot_be_written_is_told_as_that(hub, tmp_path):
    hub.add(save(state(1)))
    (tmp_path / "hf").write_text("no folder")
    with pytest.raises(OutputError, match=r"/hf.*: cannot be written \(.*set HF_HOME=DIR") as told:
        Hub().load(BACKBONE)
    assert told.value.exit == 9


def test_with_neither_network_nor_cache_one_line_says_so(hub):
    hub.close()
    for source in (Hub(), Hub(path=f"hf://{RESNET}/{FILE}"), Hub(revision=ONE)):
        with pytest.raises(
            WeightsError, match=r"not in the cache and.*source=file.*backbone=NAME"
        ) as told:
            source.load(BACKBONE)
        assert told.value.number == 411 and "\n" not in str(told.value)


def test_a_revision_that_is_not_cached_is_not_replaced_by_another(hub):
    hub.add(save(state(1)))
    Hub().load(BACKBONE)
    hub.close()
    with pytest.raises(WeightsError, match="not in the cache"):
        Hub(revision=TWO).load(BACKBONE)


# Any file of a repository


def test_any_file_is_read_by_its_content_and_pinned(hub):
    data = save({"net.a": torch.ones(2), "net.b": torch.zeros(2)})
    hub.add(data, repo="me/mine", name="runs/1/best.weights")
    source = Hub(path="hf://me/mine/runs/1/best.weights", strip="net.", classes=("x", "y"))
    weights = source.load(BACKBONE)
    assert list(weights.state or ()) == ["a", "b"] and weights.renamed["a"] == "net.a"
    assert weights.origin == f"hf://me/mine/runs/1/best.weights@{ONE}"
    assert weights.classes == ("x", "y") and weights.sha256 == hashlib.sha256(data).hexdigest()
    hub.add(b"", repo="me/mine", name="runs/1/best.weights", commit=TWO)
    hub.close()
    again = Hub(**weights.pinned).load(BACKBONE)
    assert (again.origin, again.sha256) == (weights.origin, weights.sha256)
    assert again.classes is None


def test_a_branch_is_what_its_commit_was(hub):
    hub.add(save({"a": torch.ones(1)}), repo="me/mine", name="w", commit=TWO)
    hub.add(save({"a": torch.zeros(1)}), repo="me/mine", name="w", commit=ONE)
    hub.refs["me/mine", "refs/pr/1"] = TWO
    for source in (
        Hub(path="hf://me/mine/w@refs/pr/1"),
        Hub(path="hf://me/mine/w", revision="refs/pr/1"),
        Hub(path=f"hf://me/mine/w@{TWO}"),
    ):
        weights = source.load(BACKBONE)
        assert weights.pinned["revision"] == TWO and weights.state["a"] == 1


def test_the_entry_of_a_nested_file_can_be_named(hub, tmp_path):
    torch.save({"model": {"a": torch.ones(1)}, "model_ema": {"a": torch.zeros(1)}}, tmp_path / "w")
    hub.add((tmp_path / "w").read_bytes(), repo="me/mine", name="w.pth")
    assert Hub(path="hf://me/mine/w.pth", key="model").load(BACKBONE).state["a"] == 1


def test_an_error_in_a_file_names_the_repository(hub):
    hub.add(b"version https://git-lfs.github.com/spec/v1\n", repo="me/mine", name="w")
    with pytest.raises(WeightsError, match=f"hf://me/mine/w@{ONE}.*LFS"):
        Hub(path="hf://me/mine/w").load(BACKBONE)


HOSTILE = [
    *("", "me/mine/w", "https://me/mine/w", "hf://mine", "hf://me/mine/"),
    *("hf://../mine/w", "hf://me/../w", "hf://me/mine/../w", "hf://me/mine/a/../../w"),
    *("hf://me/mine//etc/passwd", "hf://me/mine/./w", "hf://me/mine/a\\..\\w", "hf://me/mine/C:w"),
    *("hf://me/mi ne/w", "hf://me/mine/w\n", "hf://me/mine/w\x00", "hf://me/mine/w\x1b[2J"),
    *("hf://me/-mine/w", "hf://me/mi--ne/w", "hf://mé/mine/w", f"hf://me/mine/{'w' * 300}"),
    *("hf://me/mine/w@../x", "hf://me/mine/w@/x", "hf://me/mine/w@a..b", "hf://me/mine/w@"),
    *("hf://me/mine/w@-x", "hf://me/mine/w@a b", "hf://me/mine/w@a@b", "hf://me/mine/w@x/"),
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_that_no_repository_has_is_refused_before_anything_is_asked(path):
    with pytest.raises(ConfigError) as caught:
        Hub(path=path)
    assert caught.value.exit == 2 and str(caught.value).isprintable()


@pytest.mark.parametrize("revision", ["../../x", "/x", "a b", "a\nb", "", "-x", "x" * 300])
def test_a_revision_that_is_none_is_refused(hub, revision):
    with pytest.raises(ConfigError, match="revision"):
        Hub(revision=revision).load(BACKBONE)
    assert not hub.asked


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"path": "hf://me/mine/w", "tag": "a1_in1k"}, "source.tag"),
        ({"path": "hf://me/mine/w@main", "revision": "main"}, "source.revision"),
        ({"key": "model"}, "source.key"),
        ({"key": "model", "path": "hf://me/mine"}, "source.key"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(given, key):
    with pytest.raises(ConfigError, match=f"drop {key}"):
        Hub(**given)


# torchvision


def stored(monkeypatch: pytest.MonkeyPatch, root: Path, url: str) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(root))
    path = root / "hub" / "checkpoints" / url.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_torchvisions_weights_know_imagenets_classes(tmp_path, monkeypatch):
    from torchvision import models

    backbone, enum = Torchvision("squeezenet1_0"), models.SqueezeNet1_0_Weights.IMAGENET1K_V1
    torch.save(backbone.build().module.state_dict(), stored(monkeypatch, tmp_path, enum.url))
    weights = Hub(local_files_only=True).load(backbone)
    assert weights.classes == imagenet.classes() and weights.synonyms == imagenet.synonyms()
    assert weights.pinned == {"tag": "IMAGENET1K_V1"} and not weights.renamed
    mine = tuple(f"c{i}" for i in range(1000))
    assert Hub(classes=mine).load(backbone).classes == mine
    with pytest.raises(ConfigError, match=r"drop source\.revision"):
        Hub(revision="main").load(backbone)


def test_names_that_torchvision_changes_are_reported_and_can_be_changed_again(
    tmp_path, monkeypatch
):
    from torchvision import models

    path = stored(monkeypatch, tmp_path, models.DenseNet121_Weights.DEFAULT.url)
    torch.save({"f.denselayer1.norm.1.weight": torch.ones(1), "b": torch.ones(1)}, path)
    backbone = Torchvision("densenet121")
    weights = Hub().load(backbone)
    assert weights.renamed == {"f.denselayer1.norm1.weight": "f.denselayer1.norm.1.weight"}
    again = Hub(strip="f.").load(backbone)
    assert again.renamed == {"denselayer1.norm1.weight": "f.denselayer1.norm.1.weight"}


def test_a_file_of_torchs_store_is_held_against_the_hash_in_its_name(
    server: Server, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    data = save({"a": torch.ones(1)})
    name = f"/net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.routes |= {name: data, "/net-00000000.pth": data, "/vit.g.16-600e.pth.tar": data}
    path = libraries.stored(server.url + name, local=False)
    assert path == tmp_path / "hub" / "checkpoints" / name[1:] and path.read_bytes() == data
    libraries.stored(server.url + name, local=False)
    libraries.stored(f"{server.url}/vit.g.16-600e.pth.tar", local=False)  # 600e is no hash
    with pytest.raises(WeightsError, match=r"sha256 is .*, expected 00000000") as told:
        libraries.stored(f"{server.url}/net-00000000.pth", local=False)
    assert told.value.number == 411 and len(server.asked) == 3
    assert len(list(path.parent.iterdir())) == 2
    with pytest.raises(WeightsError) as told:
        libraries.stored(f"{server.url}/gone.pth", local=False)
    said = f"'gone.pth' is not in the cache and {server.url}/gone.pth cannot be downloaded (HTTP "
    assert told.value.what.startswith(said)


# Processes of their own

SCRIPT = """
import socket, sys

class Counted(socket.socket):
    def __init__(self, *given, **more):
        print("a socket was opened")
        super().__init__(*given, **more)

socket.socket = Counted
from xfer.models.backbone import Timm, Torchvision
from xfer.core.errors import XferError
from xfer.weights.source.hub import Hub

for given in ({}, {"path": "hf://me/mine/w"}, {"path": "hf://me/mine/other"}):
    for backbone in (Timm("test_resnet"), Torchvision("squeezenet1_0")):
        try:
            print(Hub(local_files_only=sys.argv[1] == "local", **given).load(backbone).origin)
        except XferError as error:
            print(error)
"""


@pytest.fixture
def libraries_of(hub, tmp_path, monkeypatch):
    """A process that has imported the libraries, which read their settings then, and nothing else
    yet."""
    # torchvision's store is elsewhere; nobody answers at this proxy.
    places = {"TORCH_HOME": str(tmp_path / "torch"), "https_proxy": "http://127.0.0.1:1"}
    for name, value in {**places, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    server = warm.Server("xfer.weights.source.hub", "timm", "torchvision.models", "huggingface_hub")
    yield server
    server.close()


def alone(mode: str, root: Path, libraries: warm.Server) -> list[str]:
    run = warm.start(root, mode, script=SCRIPT, of=libraries)
    said, _ = run.communicate()
    assert run.returncode == 0 and "Traceback" not in said, said
    return said.splitlines()


def test_local_files_only_opens_no_socket_and_else_the_endpoint_is_asked(
    hub, tmp_path, libraries_of
):
    hub.add(save(state(1)))
    hub.add(save({"a": torch.ones(1)}), repo="me/mine", name="w")
    timm, file = "timm:test_resnet.r160_in1k", f"hf://me/mine/w@{ONE}"
    lines = alone("network", tmp_path, libraries_of)
    assert "a socket was opened" in lines, "or the proof below could not fail"
    lines = [line for line in lines if line != "a socket was opened"]
    assert [timm, file, file] == [lines[0], *lines[2:4]]
    assert "E411" in lines[1] and all("E457" in line for line in lines[4:])
    asked = len(hub.asked)
    lines = alone("local", tmp_path, libraries_of)
    assert [timm, file, file] == [lines[0], *lines[2:4]] and len(lines) == 6
    assert all("E411" in lines[i] for i in (1, 4, 5)) and len(hub.asked) == asked


# ImageNet


def test_imagenets_thousand_names_are_distinct_and_torchvisions():
    from torchvision import models

    names, more = imagenet.classes(), imagenet.synonyms()
    assert len(set(names)) == len(names) == len(more) == 1000
    assert names[207] == "golden retriever" and more[207][0] == "n02099601"
    assert (names[134], names[517], names[638], names[639]) == (
        *("crane bird", "crane", "maillot", "maillot tank suit"),
    )
    categories = models.ResNet18_Weights.DEFAULT.meta["categories"]
    assert tuple(categories) == names
    assert all(s[0].startswith("n") and len(s) > 1 for s in more)


def test_a_list_is_imagenets_only_by_its_names_in_order():
    names = list(imagenet.classes())
    assert imagenet.lists(names)
    assert imagenet.lists(["tench", *names[1:134], "crane", *names[135:]])  # older torchvision
    assert not imagenet.lists(names[::-1]) and not imagenet.lists(names[:-1])
    assert not imagenet.lists([]) and not imagenet.lists([*names, "more"])
    assert not imagenet.lists(["cat", *names[1:]])
