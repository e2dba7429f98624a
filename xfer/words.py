"""Words of other tools (Ultralytics, timm, fastai, Lightning, Keras, Hugging Face) for what has
another name here, each with what to type."""

from __future__ import annotations

import json
import re
from pathlib import Path

ADVICE = {
    "backbone=timm backbone.name=NAME": "model arch architecture model_name net "
    "network backbone_name",
    "source=file source.path=FILE": "weights weight_file weights_path load_from init_checkpoint "
    "pretrained_path model_path",
    "source=hub": "pretrained pretrained_weights use_pretrained",
    "data.root=DIR": "path data_path data_dir dataset dataset_path dataset_dir root train_dir "
    "train_folder image_dir input_dir",
    "backbone.image_size=PIXELS": "imgsz img_size image_size input_size crop_size resolution",
    "data.batch_size=NUMBER": "bs batch train_batch_size per_gpu_batch_size "
    "per_device_train_batch_size",
    "data.workers=NUMBER": "num_workers dataloader_num_workers n_workers",
    "data.val_fraction=NUMBER": "val_split validation_split valid_pct val_pct val_size",
    "trainer.max_epochs=NUMBER": "n_epochs num_epochs num_train_epochs nb_epochs epoch",
    "trainer.patience=NUMBER": "early_stopping early_stopping_patience",
    "trainer.accelerator=auto": "device gpu gpus cuda",
    "trainer.precision=bf16-mixed": "amp fp16 bf16 half mixed_precision",
    "optim=adamw optim.lr=NUMBER": "learning_rate lr0 base_lr lr_max max_lr blr",
    "optim=adamw": "opt optimizer optimizer_name",
    "optim=adamw optim.weight_decay=NUMBER": "wd",
    "optim=sgd optim.momentum=NUMBER": "momentum",
    "schedule=cosine": "sched scheduler lr_scheduler lr_scheduler_type",
    "loss=smoothed": "smoothing label_smoothing",
    "head=dropout": "dropout drop_rate drop",
    "augment=standard": "transforms transform aug augmentation augmentations auto_augment",
    "freeze=head_only": "freeze_backbone frozen",
    "run.dir=DIR": "output output_dir out_dir save_dir project default_root_dir log_dir logdir",
    "checkpoint.resume=auto": "resume_from resume_from_checkpoint ckpt_path",
    "stages=[fit,evaluate]": "mode",
    "seed=NUMBER": "random_state random_seed",
}
"""What to type for the words behind it."""
_BY_WORD = {word: typed for typed, words in ADVICE.items() for word in words.split()}
_NO_KEY = frozenset({"num_classes", "n_classes", "nc", "num_labels", "classes"})
# Too usual inside a group to say which tool it comes from.
_USUAL = frozenset({"path", "output", "mode", "root", "drop", "project", "epoch"})

STAGES = {
    **dict.fromkeys(("train", "training", "finetune", "fine_tune"), "fit"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "test", "eval"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "prediction"), "predict"),
    **dict.fromkeys(("convert", "deploy"), "export"),
    **dict.fromkeys(("plot", "summary"), "report"),
    **dict.fromkeys(("tune", "lr_finder", "find_lr"), "lr_find"),
}
"""What others call a stage."""
_FILE = re.compile(r".*[/\\].*|.*\.(?:pt|pth|th|bin|tar|ckpt|safetensors|npz)")
_INDEX = Path(__file__).with_name("backbone") / "index.json"


def for_key(key: str, groups: tuple[str, ...]) -> str:
    """The remedy for a key that is another tool's word, or nothing."""
    group, _, rest = key.lower().replace("-", "_").partition(".")
    word = rest.rpartition(".")[2] or group
    if word in _NO_KEY and group not in ("source", "backbone"):
        return "drop it: the classes are the folders of data.root"
    if rest == "name" and group in ("model", "arch", "net", "network"):
        return f"type {_BY_WORD[group]}"
    typed = _BY_WORD.get(word, "")
    inside = bool(rest) and group in groups
    if not typed or (inside and word in _USUAL and not typed.startswith(f"{group}.")):
        return ""
    return f"type {typed}"


def for_option(group: str, word: str) -> str:
    """The remedy for an option of ``group`` that is a model's name, a file or another tool's word,
    or nothing."""
    if group == "backbone":
        models = json.loads(_INDEX.read_text(encoding="utf-8"))
        owner = next((lib for lib in ("timm", "torchvision") if word in models[lib]), None)
        return f"type backbone={owner} backbone.name={word}" if owner else ""
    if group == "source" and word in ("imagenet", "pretrained", "true", "default", "timm"):
        return "type source=hub"
    if group == "source" and _FILE.fullmatch(word):
        return f"type source=file source.path={word}"
    if group == "checkpoint" and _FILE.fullmatch(word):
        return f"type checkpoint.path={word}"
    if group == "optim" and word.lower() == "adam":
        return "type optim=torch optim.name=Adam"
    return ""
