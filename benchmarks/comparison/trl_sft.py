"""TRL's SFTTrainer with packing, in three configurations."""

import math
from typing import Any

import datasets
import torch
from trl import SFTConfig, SFTTrainer

from comparison.data import Selection, count_messages, count_tokens, labels_of, messages_hash
from comparison.job import Job, Result
from comparison.measure import Stopwatch, held_out_loss, load_model
from comparison.trainer_options import TimedTraining, trainer_options
from comparison.trl_shape import choose_shape
from discord_lora.base_model import load_tokenizer
from discord_lora.conversations.packing import pack
from discord_lora.hardware import Hardware


def run(job: Job, selection: Selection, hardware: Hardware) -> Result:
    settings = selection.settings
    shape = choose_shape(job, selection)
    examples = selection.whole_conversations(shape.row_tokens)
    passes = math.ceil(len(pack(examples, shape.row_tokens)) / shape.rows_per_pass)
    model: Any = load_model(job.location, settings, hardware, examples)
    datasets.disable_progress_bars()
    arguments = SFTConfig(
        **trainer_options(
            settings,
            hardware,
            steps=math.ceil(passes / shape.passes_per_step),
        ),
        per_device_train_batch_size=shape.rows_per_pass,
        gradient_accumulation_steps=shape.passes_per_step,
        gradient_checkpointing=shape.checkpointing,
        max_length=shape.row_tokens,
        packing=True,
    )
    stopwatch = Stopwatch(hardware)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(
            {
                "input_ids": [example.input_ids.tolist() for example in examples],
                "labels": [labels_of(example) for example in examples],
            }
        ),
        processing_class=load_tokenizer(job.location),
        callbacks=[TimedTraining(stopwatch)],
    )
    keep_adapter_in_fp32(trainer.model)
    trainer.train()
    return Result(
        contender=job.task,
        messages=count_messages(examples),
        tokens=count_tokens(examples),
        steps=trainer.state.global_step,
        seconds=stopwatch.seconds,
        peak_bytes=stopwatch.peak_bytes,
        busy_cores=stopwatch.busy_cores,
        held_out_nats=held_out_loss(trainer.model, selection.held_out_examples(), hardware),
        same_messages=messages_hash(examples),
        shape=str(shape),
    )


def keep_adapter_in_fp32(model: Any) -> None:
    """Undo that SFTTrainer casts the LoRA of a 4-bit model to bf16: the others train in fp32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
