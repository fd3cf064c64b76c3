"""TRL's SFTTrainer with packing, in three configurations."""

import math
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from trl import SFTConfig, SFTTrainer

from comparison.data import Selection, count_messages, count_tokens, labels_of, messages_hash
from comparison.job import Job, Result
from comparison.measure import Stopwatch, held_out_loss, load_model
from comparison.trainer_options import TimedTraining, trainer_options
from discord_lora.base_model import load_tokenizer
from discord_lora.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Shape:
    """How TRL is to lay out its rows."""

    row_tokens: int
    rows_per_pass: int
    passes_per_step: int
    checkpointing: bool

    def __str__(self) -> str:
        accumulated = f" x {self.passes_per_step}" if self.passes_per_step > 1 else ""
        checkpointing = ", checkpointing" if self.checkpointing else ""
        return f"{self.rows_per_pass} x {self.row_tokens:,} tokens{accumulated}{checkpointing}"


def run(job: Job, selection: Selection, hardware: Hardware) -> Result:
    settings = selection.settings
    shape = choose_shape(job, selection)
    examples = selection.whole_conversations(shape.row_tokens)
    tokens = count_tokens(examples)
    per_step = shape.row_tokens * shape.rows_per_pass * shape.passes_per_step
    model: Any = load_model(job.location, settings, hardware, examples)
    datasets.disable_progress_bars()
    arguments = SFTConfig(
        **trainer_options(settings, hardware, steps=math.ceil(tokens / per_step)),
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
        tokens=tokens,
        steps=trainer.state.global_step,
        seconds=stopwatch.seconds,
        peak_bytes=stopwatch.peak_bytes,
        held_out_nats=held_out_loss(trainer.model, selection.held_out_examples(), hardware),
        same_messages=messages_hash(examples),
        shape=str(shape),
    )


def choose_shape(job: Job, selection: Selection) -> Shape:
    """Steps of about as many messages as everyone's, in the longest rows or in the fastest ones."""
    is_best = job.task == "trl-best"
    row_tokens = job.row_tokens if is_best else selection.settings.max_seq_length
    examples = selection.whole_conversations(row_tokens)
    a_message = count_tokens(examples) / count_messages(examples)
    step_tokens = a_message * selection.settings.messages_per_step
    if is_best:
        passes = max(1, round(step_tokens / (row_tokens * job.rows_per_pass)))
        return Shape(row_tokens, job.rows_per_pass, passes, checkpointing=False)
    return even_shape(step_tokens, row_tokens, checkpointing=job.task.endswith("checkpointing"))


def even_shape(step_tokens: float, longest: int, *, checkpointing: bool) -> Shape:
    """One row a pass, and rows of one length that together hold about `step_tokens`."""
    passes = max(1, math.ceil(step_tokens / longest))
    row_tokens = min(longest, 32 * round(step_tokens / passes / 32))
    return Shape(row_tokens, 1, passes, checkpointing)


def keep_adapter_in_fp32(model: Any) -> None:
    """Undo that SFTTrainer casts the LoRA of a 4-bit model to bf16: the others train in fp32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
