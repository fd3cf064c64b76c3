"""LoRA on the base model: attach it, train one further, write it as a plain PEFT adapter."""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from discord_lora.adapter_folder import (
    RUN_FILE,
    RunInfo,
    find_adapter,
    load_adapter,
    read_run_info,
)
from discord_lora.console import UserError, words_of
from discord_lora.finetuning.disk_room import (
    WRITE_ERRORS,
    NoRoom,
    flush_files,
    flush_folder,
    put_in_place,
    when_there_is_room,
)
from discord_lora.settings import Settings


def attach_adapter(model: Any, settings: Settings) -> Any:
    """A new LoRA, or the one of CONTINUE_FROM, with trainable fp32 weights.

    Raises:
        UserError: CONTINUE_FROM or LORA_TARGET_MODULES does not fit the base model.
    """
    if settings.continue_from is not None:
        return _continue(model, adapter_to_continue(settings), settings)
    torch.manual_seed(settings.seed)  # LoRA's A matrices start at random
    targets = settings.lora_target_modules.strip()
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if targets == "all-linear" else _names(targets),
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"LORA_TARGET_MODULES: {targets} does not fit this model ({error}); "
            "'all-linear' always does."
        ) from None


def _names(targets: str) -> list[str]:
    return [name.strip() for name in targets.split(",") if name.strip()]


def _continue(model: Any, folder: Path, settings: Settings) -> Any:
    info = read_run_info(folder)
    if info.base_model != settings.base_model:
        raise UserError(
            f"CONTINUE_FROM: {folder} belongs to BASE_MODEL={info.base_model}, and BASE_MODEL is "
            f"{settings.base_model}; set the same one."
        )
    continued = load_adapter(model, folder, is_trainable=True)
    config = continued.peft_config[continued.active_adapter]
    wanted = {
        "LORA_R": (settings.lora_r, config.r),
        "LORA_ALPHA": (settings.lora_alpha, config.lora_alpha),
        "LORA_DROPOUT": (settings.lora_dropout, config.lora_dropout),
    }
    problems = [
        f"{key}: is {ours}, and the adapter of CONTINUE_FROM was made with {its}; set {key}={its}."
        for key, (ours, its) in wanted.items()
        if ours != its
    ]
    if problems:
        raise UserError(*problems)
    return continued


def adapter_to_continue(settings: Settings) -> Path:
    """The folder that CONTINUE_FROM names, by path or by its name below OUTPUT_DIR."""
    return find_adapter(settings.output_dir, str(settings.continue_from))


def steps_already_seen(settings: Settings, data_fingerprint: str) -> int:
    """Steps on this very data that the adapter of CONTINUE_FROM has behind it.

    "Half an epoch more" goes on with the other half; with other data it starts at their beginning.
    """
    if settings.continue_from is None:
        return 0
    info = read_run_info(adapter_to_continue(settings))
    same = ("seed", "batch_size", "gradient_accumulation_steps")
    values = settings.model_dump()
    if info.data_fingerprint != data_fingerprint or any(
        info.settings.get(name) != values[name] for name in same
    ):
        return 0
    return info.steps_before + info.steps


def library_versions() -> dict[str, str]:
    names = ("discord-lora", "torch", "transformers", "peft", "bitsandbytes", "accelerate")
    return {name: version(name) for name in names}


def save_adapter(
    model: Any,
    weights: dict[str, Tensor],
    info: RunInfo,
    folder: Path,
    *,
    make_room: Callable[[], bool] = lambda: False,
    no_room: NoRoom | None = None,
) -> None:
    """Write adapter, `run.json` and model card aside, then put each in its place.

    `weights` are the model's trainable ones by name, gathered where they are sharded. With
    `no_room`, a full disk is waited for, as `when_there_is_room` does.

    Raises:
        UserError: the folder cannot be written.
        Interrupted: of `no_room`.
    """
    aside = folder / "adapter.partial"

    def write() -> None:
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            model.save_pretrained(
                str(aside), state_dict=weights, safe_serialization=True, save_embedding_layers=False
            )
            info.write(aside)
            (aside / "README.md").write_text(model_card(info), encoding="utf-8", newline="\n")
            flush_files(aside)
            _put_all_in_place(aside, folder)
        except WRITE_ERRORS:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    try:
        when_there_is_room(
            write, "the finished adapter", folder, make_room=make_room, no_room=no_room
        )
    except WRITE_ERRORS as error:
        raise UserError(
            f"OUTPUT_DIR: cannot write {folder} ({words_of(error)}); make room or check the "
            "rights, then run the same command again: it goes on from the last checkpoint."
        ) from None


def _put_all_in_place(aside: Path, folder: Path) -> None:
    """`run.json` goes last: it is what makes the folder a finished adapter."""
    names = [path.name for path in aside.iterdir() if path.name != RUN_FILE]
    for name in names:
        put_in_place(aside / name, folder / name)
    flush_folder(folder)
    put_in_place(aside / RUN_FILE, folder / RUN_FILE)
    flush_folder(folder)
    shutil.rmtree(aside, ignore_errors=True)  # it is empty, and the adapter is there


def model_card(info: RunInfo) -> str:
    """README.md of an adapter folder: what it is, and how to talk to it."""
    speaks_as = {
        "persona": f"the member {info.voice.name}",
        "server": f"one more member of the server, called {info.voice.name}",
        "ready": f"the assistant of ready conversations, called {info.voice.name}",
    }[info.voice.kind]
    losses = "\n".join(f"| {name} | {value:.4f} |" for name, value in info.losses.items())
    return f"""---
base_model: {info.base_model}
library_name: peft
---
# LoRA adapter that speaks as {speaks_as}

Trained with discord-lora for {info.steps:,} steps on {info.base_model} ({info.quantization}).
Real people's messages were learned from: share it only with their consent.

| held-out loss | value |
|---|---|
{losses}

Talk to it: `python scripts/chat.py --adapter PATH_TO_THIS_FOLDER`. How it was made: `run.json`.
"""
