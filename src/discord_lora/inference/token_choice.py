"""Which token comes next: the filters of `transformers.generate`, row by row of a batch."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from discord_lora.inference.backend import Sampling


@dataclass(slots=True)
class Chooser:
    """How one answer picks its words. Its random numbers are its own, so that an answer does not
    depend on what else is in the batch."""

    sampling: Sampling
    generator: torch.Generator

    @classmethod
    def make(cls, sampling: Sampling, seed: int | None, device: torch.device) -> "Chooser":
        generator = torch.Generator(device)
        generator.manual_seed(random.getrandbits(63) if seed is None else seed % 2**63)
        return cls(sampling, generator)


def choose(
    logits: Tensor, choosers: Sequence[Chooser], token_ids: Sequence[Sequence[int]]
) -> list[int]:
    """The next token of each row.

    Args:
        logits: of shape (rows, vocabulary).
        choosers: one a row.
        token_ids: all tokens of the row so far, prompt included.
    """
    logits = logits.float()
    chosen = [0] * len(choosers)
    groups: dict[Sampling, list[int]] = defaultdict(list)
    for row, chooser in enumerate(choosers):
        groups[chooser.sampling].append(row)
    for sampling, rows in groups.items():
        scores = _unrepeated(logits[rows], sampling, [token_ids[row] for row in rows])
        if sampling.temperature == 0:
            picked = scores.argmax(-1).tolist()
        else:
            no_tokens: Any = None
            scores = _filters(sampling)(no_tokens, scores)
            likelihoods = scores.softmax(-1)
            picked = [
                int(torch.multinomial(one, 1, generator=choosers[row].generator))
                for one, row in zip(likelihoods, rows, strict=True)
            ]
        for row, token in zip(rows, picked, strict=True):
            chosen[row] = token
    return chosen


def _filters(sampling: Sampling) -> LogitsProcessorList:
    """In the order of `generate`. None of them looks at the tokens so far."""
    filters = LogitsProcessorList()
    if sampling.temperature != 1:
        filters.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        filters.append(MinPLogitsWarper(sampling.min_p))
    return filters


def _unrepeated(scores: Tensor, sampling: Sampling, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """Rows have texts of different lengths, so each is penalised on its own."""
    if sampling.repetition_penalty == 1:
        return scores
    penalise = RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
    rows = [
        penalise(torch.tensor([said], device=scores.device), row[None])
        for said, row in zip(token_ids, scores, strict=True)
    ]
    return torch.cat(rows)
