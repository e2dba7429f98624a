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
    "initial_checkpoint pretrained_path pretrained_model model_path",
    "source=hub": "pretrained pretrained_weights use_pretrained",
    "data.root=DIR": "path data_path data_dir dataset dataset_path dataset_dir root root_dir "
    "directory folder train_dir train_folder train_path train_data image_dir image_folder "
    "input_dir",
    "backbone.image_size=PIXELS": "imgsz img_size image_size input_size input_shape crop_size "
    "resolution",
    "data.batch_size=NUMBER": "bs batch train_batch_size per_gpu_batch_size "
    "per_device_train_batch_size",
    "data.eval_batch_size=NUMBER": "val_bs val_batch_size test_batch_size validation_batch_size "
    "per_device_eval_batch_size",
    "data.workers=NUMBER": "num_workers dataloader_num_workers n_workers",
    "data.decoded_gb=auto": "cache cache_images",
    "data.val_fraction=NUMBER": "val_split validation_split valid_pct val_pct val_size",
    "trainer.max_epochs=NUMBER": "n_epoch n_epochs num_epoch num_epochs max_epoch "
    "num_train_epochs nb_epochs epoch max_steps total_steps steps_per_epoch",
    "trainer.patience=NUMBER": "early_stop early_stopping early_stopping_patience patience_epochs",
    "trainer.accelerator=auto": "device gpu gpus cuda use_gpu use_cuda no_cuda",
    "trainer.devices=NUMBER": "num_gpus n_gpus ngpus nproc_per_node world_size strategy",
    "trainer.precision=bf16-mixed": "amp amp_dtype use_amp fp16 bf16 half mixed_precision",
    "trainer.compile=true": "torchcompile torch_compile",
    "trainer.clip_norm=NUMBER": "clip_grad grad_clip gradient_clip gradient_clip_val clipnorm "
    "max_grad_norm",
    "trainer.accumulate=NUMBER": "accumulate_grad_batches grad_accum_steps "
    "gradient_accumulation_steps accumulation_steps accum_iter",
    "trainer.ema_decay=NUMBER": "ema use_ema model_ema model_ema_decay",
    "optim=adamw optim.lr=NUMBER": "learning_rate lr0 base_lr lr_base lr_max max_lr blr",
    "optim=adamw": "opt optimizer optimizer_name opt_func",
    "optim=adamw optim.weight_decay=NUMBER": "wd",
    "optim=sgd optim.momentum=NUMBER": "momentum moms",
    "schedule=cosine": "sched scheduler lr_scheduler lr_scheduler_type cos_lr",
    "schedule=cosine schedule.warmup_epochs=NUMBER": "warmup warmup_epochs warmup_steps "
    "warmup_ratio num_warmup_steps pct_start",
    "schedule=cosine schedule.final=NUMBER": "lrf min_lr lr_min eta_min final_lr",
    "schedule=step schedule.every=NUMBER": "step_size decay_epochs decay_milestones lr_step",
    "schedule=step schedule.gamma=NUMBER": "gamma decay_rate lr_gamma",
    "loss=smoothed": "smoothing label_smoothing label_smoothing_factor",
    "loss=balanced": "class_weight class_weights weighted_loss",
    "loss=cross_entropy": "loss_fn loss_func loss_function criterion bce_loss",
    "head=dropout": "dropout drop_rate drop",
    "augment=standard": "transforms transform aug augmentation augmentations item_tfms batch_tfms",
    "augment=none": "no_aug",
    "augment=standard augment.flip=NUMBER": "hflip fliplr horizontal_flip",
    "augment=strong": "auto_augment autoaugment aa randaugment color_jitter hsv_h hsv_s hsv_v "
    "degrees translate shear perspective mosaic vflip flipud",
    "augment=strong augment.erasing=NUMBER": "reprob erasing random_erasing",
    "augment=mixed augment.mixup=NUMBER": "mixup mixup_alpha",
    "augment=mixed augment.cutmix=NUMBER": "cutmix cutmix_alpha",
    "freeze=head_only": "freeze_backbone frozen feature_extract feature_extraction linear_probe",
    "freeze=none": "finetune fine_tune finetuning train_all",
    "freeze=gradual": "unfreeze gradual_unfreezing",
    "freeze=first_n freeze.n=NUMBER": "freeze_layers freeze_at n_freeze",
    "freeze=lp_ft freeze.probe_epochs=NUMBER": "freeze_epochs",
    "freeze=layer_decay freeze.decay=NUMBER": "layer_decay layerwise_decay",
    "run.dir=DIR": "output output_dir out_dir save_dir project default_root_dir log_dir logdir "
    "logging_dir work_dir results_dir",
    "checkpoint.resume=auto": "resume_from resume_from_checkpoint ckpt_path",
    "checkpoint=best": "save_best save_best_only load_best_model_at_end",
    "checkpoint.monitor=val_acc": "metric eval_metric metric_for_best_model",
    "checkpoint=every_epoch checkpoint.every_n_epochs=NUMBER": "save_period save_freq save_every "
    "save_interval",
    "checkpoint.keep=NUMBER": "save_total_limit save_top_k checkpoint_hist",
    "logger=tensorboard": "tensorboard use_tensorboard",
    "logger=wandb": "wandb use_wandb log_wandb report_to",
    "export=onnx": "format export_format",
    "export=int8": "int8 quantize",
    "export=onnx export.onnx.opset=20": "opset opset_version",
    "stages=[fit,evaluate]": "mode train val task",
    "seed=NUMBER": "random_state random_seed",
}
"""What to type for the words behind it."""
_BY_WORD = {word: typed for typed, words in ADVICE.items() for word in words.split()}
_BESIDE = frozenset(
    {"val_dir", "valid_dir", "test_dir", "val_path", "test_path", "val_data", "test_data"}
    | {"validation_data", "val_folder", "test_folder", "validation_dir", "valid"}
)
_NO_KEY = {
    "the classes are the folders of data.root": "num_classes n_classes nc num_labels classes "
    "class_names class_map",
    "what the input needs comes with the weights": "mean std normalize crop_pct interpolation "
    "in_chans channels num_channels color_mode",
    "the training images are shuffled in every epoch": "shuffle",
    "every metric is computed": "metrics",
    "report.html has the figures": "plots",
    "every run has a folder of its own": "exist_ok overwrite",
    "every run keeps its best epoch": "save",
}
"""Why the words behind it are not needed."""
_REASON = {word: reason for reason, words in _NO_KEY.items() for word in words.split()}
# Too usual inside a group to say which tool it comes from.
_USUAL = frozenset(
    {"path", "output", "mode", "root", "drop", "project", "epoch", "train", "val", "task", "cache"}
    | {"format", "metric", "warmup", "folder", "directory", "gamma", "resolution", "strategy"}
    | {"device", "erasing", "valid", "save", "mean", "std", "channels", "interpolation"}
)

STAGES = {
    **dict.fromkeys(("train", "training", "finetune", "fine_tune"), "fit"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "test", "eval"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "prediction"), "predict"),
    **dict.fromkeys(("convert", "deploy"), "export"),
    **dict.fromkeys(("plot", "summary"), "report"),
    **dict.fromkeys(("tune", "lr_finder", "find_lr"), "lr_find"),
}
"""What others call a stage."""
OPTIONS = {
    "augment": {
        "augment=standard": "true default imagenet",
        "augment=none": "false null",
        "augment=strong": "randaugment randaug autoaugment trivialaugment augmix",
        "augment=mixed": "mixup cutmix",
    },
    "checkpoint": {"checkpoint.resume=auto": "last auto", "checkpoint=best": "true"},
    "export": {
        "export=onnx": "true coreml tflite openvino engine tensorrt trt",
        "export=safetensors": "pt pth torch pytorch",
        "export=none": "false null",
    },
    "features": {"features=auto": "true", "features=never": "false null"},
    "freeze": {
        "freeze=head_only": "true all backbone encoder body",
        "freeze=none": "false null nothing",
    },
    "head": {"head=linear": "true default fc classifier logits"},
    "logger": {"logger=csv": "true false null none default"},
    "loss": {
        "loss=cross_entropy": "bce bcewithlogitsloss binary_crossentropy binary_cross_entropy ce "
        "crossentropy crossentropyloss categorical_crossentropy sparse_categorical_crossentropy "
        "nll nllloss",
        "loss=balanced": "focal focal_loss focalloss weighted",
        "loss=smoothed": "label_smoothing labelsmoothing",
    },
    "optim": {
        f"optim=torch optim.name={name}": name.lower()
        for name in "Adam RMSprop Adagrad Adadelta Adamax NAdam RAdam ASGD".split()
    }
    | {f"optim=timm optim.name={name}": name for name in ("lamb", "lars", "lion", "adabelief")},
    "schedule": {
        "schedule=warmup_decay": "linear onecycle one_cycle onecyclelr linear_warmup",
        "schedule=step": "steplr multistep multisteplr",
        "schedule=cosine": "true plateau reducelronplateau poly cosineannealing cosineannealinglr",
        "schedule=constant": "false null fixed none",
    },
    "source": {
        "source=hub": "imagenet imagenet1k imagenet21k pretrained true default timm",
        "source=none": "false null scratch random",
    },
}
"""What to type for what is no option of a group."""
_WEIGHTS = r".*[/\\].*|.*\.(?:pt|pth|th|bin|tar|ckpt|safetensors|npz)"
# The group, what its option looks like, and what to type for it.
_SHAPES = (
    ("freeze", r"\d+", "freeze=first_n freeze.n=NUMBER, of stages and not of layers"),
    (
        "source",
        r".*\.(?:jpe?g|png|bmp|webp|tiff?)",
        "stages=[predict] predict.input={} checkpoint.path=RUN",
    ),
    ("source", _WEIGHTS, "source=file source.path={}"),
    ("checkpoint", _WEIGHTS, "checkpoint.path={}"),
    ("data", r".*\.[ct]sv", "data=csv data.file={}"),
)
_INDEX = Path(__file__).parents[1] / "models" / "backbone" / "index.json"


def for_key(key: str, groups: tuple[str, ...]) -> str:
    """The remedy for a key that is another tool's word, or nothing."""
    group, _, rest = key.lower().replace("-", "_").partition(".")
    word = rest.rpartition(".")[2] or group
    inside = bool(rest) and group in groups
    if inside and word in _USUAL and not _BY_WORD.get(word, "").startswith(f"{group}."):
        return ""
    if word in _REASON and group not in ("source", "backbone"):
        return f"drop it: {_REASON[word]}"
    if word in _BESIDE and (not inside or group == "data"):
        return "let train, val and test be folders in one folder, and type data.root=DIR"
    if rest == "name" and group in ("model", "arch", "net", "network"):
        return f"type {_BY_WORD[group]}"
    typed = _BY_WORD.get(word, "")
    return f"type {typed}" if typed else ""


def for_option(group: str, word: str) -> str:
    """The remedy for an option of ``group`` that is a model's name, a file or another tool's word,
    or nothing."""
    for typed, others in OPTIONS.get(group, {}).items():
        if word.lower() in others.split():
            return f"type {typed}"
    if group == "backbone":
        models = json.loads(_INDEX.read_text(encoding="utf-8"))
        owner = next((lib for lib in ("timm", "torchvision") if word in models[lib]), None)
        return f"type backbone={owner} backbone.name={word}" if owner else ""
    for owner, shape, typed in _SHAPES:
        if group == owner and re.fullmatch(shape, word, re.IGNORECASE):
            return f"type {typed.format(word)}"
    return ""
