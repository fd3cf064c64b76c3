"""The recipe that everyone starts from: one message a sequence, batch 1 x 16, checkpointing."""

import math
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from comparison.data import Selection, count_messages, count_tokens, labels_of, messages_hash
from comparison.job import Job, Result
from comparison.measure import Stopwatch, held_out_loss, load_model
from comparison.trainer_options import TimedTraining, trainer_options
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.hardware import Hardware


class Sequences(Dataset[dict[str, torch.Tensor]]):
    """Tokenized messages as Trainer takes them. Nothing is padded at batch size 1."""

    def __init__(self, examples: list[TokenizedExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        example = self.examples[index]
        ids = torch.tensor(example.input_ids.tolist())
        labels = torch.tensor(labels_of(example))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def run(job: Job, selection: Selection, hardware: Hardware) -> Result:
    settings = selection.settings
    examples = selection.single_messages()
    steps = math.ceil(len(examples) / settings.messages_per_step)
    model: Any = load_model(job.location, settings, hardware, examples)
    arguments = TrainingArguments(
        **trainer_options(settings, hardware, steps),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.messages_per_step,
        gradient_checkpointing=True,
    )
    stopwatch = Stopwatch(hardware)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Sequences(examples),
        callbacks=[TimedTraining(stopwatch)],
    )
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
        shape=f"1 message x {settings.messages_per_step}, checkpointing",
    )
