"""What is measured, with the same instruments for every contender."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from discord_lora.base_model import load_base_model
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.finetuning.adapter import attach_adapter
from discord_lora.hardware import Hardware, peak_rss
from discord_lora.settings import Settings

WARM_UP_TOKENS = 64


class Stopwatch:
    """Seconds and peak memory of a `with` block (or of `start` to `stop`)."""

    def __init__(self, hardware: Hardware) -> None:
        self.on_cuda = hardware.is_cuda
        self.seconds = 0.0
        self.peak_bytes = 0
        self.busy_cores = 0.0
        """Cores that this process kept busy on average; fewer than it has threads: others took
        some of them, or it waited."""
        self._began = 0.0
        self._cpu_began = 0.0

    def start(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._began
        self.busy_cores = (time.process_time() - self._cpu_began) / self.seconds
        self.peak_bytes = torch.cuda.max_memory_allocated() if self.on_cuda else peak_rss()

    def __enter__(self) -> "Stopwatch":
        self.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.stop()


def load_model(
    location: str, settings: Settings, hardware: Hardware, examples: Sequence[TokenizedExample]
) -> Any:
    """The 4-bit base model under a new LoRA, warmed up: the same start for everyone.

    One short pass back and forth, so that no contender pays for loading kernels and making
    thread pools. Its gradients are thrown away.
    """
    model = attach_adapter(load_base_model(location, hardware, settings.quantization), settings)
    ids = torch.from_numpy(examples[0].input_ids[:WARM_UP_TOKENS].astype(np.int64))[None]
    ids = ids.to(hardware.device)
    model.train()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)
    return model


def held_out_loss(model: Any, examples: Sequence[TokenizedExample], hardware: Hardware) -> float:
    """Nats a target token, one example at a time through transformers' own forward.

    Nothing is packed, masked or normalised as any contender does it: a fault in that shows here
    as a worse model.
    """
    model.eval()
    nats, tokens = 0.0, 0
    mixed = torch.autocast(hardware.device.type, hardware.dtype, enabled=hardware.is_cuda)
    with torch.no_grad(), mixed:
        for example in examples:
            ids = torch.from_numpy(example.input_ids.astype(np.int64)).to(hardware.device)
            targets = torch.from_numpy(np.flatnonzero(example.trained)).to(hardware.device)
            output = model(input_ids=ids[None], use_cache=False, logits_to_keep=targets - 1)
            logits = output.logits[0].float()
            nats += float(functional.cross_entropy(logits, ids[targets], reduction="sum"))
            tokens += len(targets)
    return nats / tokens


def count_parameters(location: str) -> int:
    """All weights of the base model, a head that is tied to the embedding counted once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(location))
    return sum(parameter.numel() for parameter in model.parameters())
