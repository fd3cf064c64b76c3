"""Which token comes next: what the filters of `transformers.generate` leave, row by row of a batch.

The library sorts the whole vocabulary for TOP_P, which takes a tenth of a batch's step on a CPU.
MIN_P, which looks at the likeliest token only, leaves a few tokens of it; so it goes first here.
The order makes no difference to what is left, because TOP_P is told of the likelihood of all.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

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
) -> list[int | None]:
    """The next token of each row; None where the scores are no numbers.

    That happens to a row when fp16 overflows in it; the others go on.

    Args:
        logits: of shape (rows, vocabulary).
        choosers: one a row.
        token_ids: all tokens of the row so far, prompt included.
    """
    logits = logits.float()
    chosen: list[int | None] = [None] * len(choosers)
    groups: dict[Sampling, list[int]] = defaultdict(list)
    for row, chooser in enumerate(choosers):
        groups[chooser.sampling].append(row)
    for sampling, rows in groups.items():
        scores = _unrepeated(logits[rows], sampling, [token_ids[row] for row in rows])
        picked: list[int | None]
        if sampling.temperature == 0:
            picked = _likeliest(scores)
        else:
            likelihoods = (scores / sampling.temperature).softmax(-1)
            picked = [
                _drawn(one, sampling, choosers[row].generator)
                for one, row in zip(likelihoods, rows, strict=True)
            ]
        for row, token in zip(rows, picked, strict=True):
            chosen[row] = token
    return chosen


def _likeliest(scores: Tensor) -> list[int | None]:
    tokens = scores.argmax(-1)
    are_numbers = ~scores.gather(1, tokens[:, None]).squeeze(1).isnan()
    return [
        token if is_number else None
        for token, is_number in zip(tokens.tolist(), are_numbers.tolist(), strict=True)
    ]


def _drawn(likelihoods: Tensor, sampling: Sampling, generator: torch.Generator) -> int | None:
    """One token of those that MIN_P and TOP_P leave.

    One random number decides, likeliest tokens first: where rounding lets one token more or less
    through, as it may in another batch, the others are drawn as before.
    """
    enough = likelihoods >= sampling.min_p * likelihoods.max()
    tokens = enough.nonzero().squeeze(-1)
    if not len(tokens):
        return None  # not even the likeliest is as likely as itself: no numbers
    left, order = likelihoods[tokens].sort(descending=True, stable=True)
    up_to = left.cumsum(-1)
    if sampling.top_p < 1:
        # Tokens until those before them have TOP_P of the likelihood; the first has none before.
        up_to = up_to[: int((up_to - left < sampling.top_p).sum())]
    number = torch.rand(1, generator=generator, device=up_to.device) * up_to[-1]
    place = min(int(torch.searchsorted(up_to, number, right=True)), len(up_to) - 1)
    return int(tokens[order[place]])


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
