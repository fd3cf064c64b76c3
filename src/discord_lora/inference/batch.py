"""The model and the answers it is writing: one token of each at a time.

    start(answer)   reads the prompt, of which the channel's cache may hold the beginning
    step()          one forward pass writes the next token of every answer
    finish(answer)  leaves, and its keys and values become the channel's cache

No threads and no clocks here: `local_backend.py` drives it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from discord_lora.inference.kv_cache import (
    BatchCache,
    ChannelCaches,
    KeysValues,
    Read,
    empty_cache,
    keys_values,
)
from discord_lora.inference.token_choice import Chooser, choose


@dataclass(eq=False, slots=True)
class Answer:
    """One reply in the making."""

    channel: str
    token_ids: list[int]
    """The prompt and what was written so far. The last token has not been read yet."""
    chooser: Chooser
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.token_ids)

    @property
    def written(self) -> int:
        return len(self.token_ids) - self.prompt_length


class NoNumbersError(ArithmeticError):
    """An answer cannot go on."""

    def __init__(self) -> None:
        super().__init__("the model's scores are no numbers; in fp16 something may overflow")


class Batch:
    """Writes several answers at once, all with the adapter or all without it."""

    def __init__(self, model: Any, caches: ChannelCaches) -> None:
        self.model = model.eval()
        self.caches = caches
        self.answers: list[Answer] = []
        self.use_adapter = True
        """May be changed while no answer is in the making."""
        self.prefilled_tokens = 0
        """Prompt tokens that were read, rather than found in a channel's cache."""
        self._cache = BatchCache()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @torch.inference_mode()
    def start(self, answer: Answer) -> None:
        """Read the prompt and write the first token.

        Raises:
            NoNumbersError: there is none. After any error the answer is not in the batch.
        """
        cache, known = self.caches.take(self._key(answer.channel), answer.token_ids)
        new = answer.token_ids[known:]
        positions = torch.arange(known, len(answer.token_ids), device=self.device)
        with self._adapter():
            logits = self.model(
                input_ids=torch.tensor([new], device=self.device),
                position_ids=positions[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        self.prefilled_tokens += len(new)
        self._cache.add(keys_values(cache))
        try:
            (token,) = _choose([answer], logits[:, -1])
            if token is None:
                raise NoNumbersError
        except BaseException:
            self._cache.remove(len(self.answers))
            raise
        self.answers.append(answer)
        answer.token_ids.append(token)

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """Write the next token of every answer.

        Returns those that there is none for, as their scores are no numbers: they are to be
        dropped before the next step. An exception leaves everything as it was, so that the step
        can be repeated.
        """
        self._cache.before_step()
        last = [[answer.token_ids[-1]] for answer in self.answers]
        lengths = [[length] for length in self._cache.lengths]
        with self._adapter():
            logits = self.model(
                input_ids=torch.tensor(last, device=self.device),
                attention_mask=self._cache.padding_mask(self.device),
                position_ids=torch.tensor(lengths, device=self.device),
                past_key_values=self._cache,
                use_cache=True,
            ).logits
        tokens = _choose(self.answers, logits[:, -1])
        self._cache.after_step()
        without = []
        for answer, token in zip(self.answers, tokens, strict=True):
            if token is None:
                without.append(answer)
            else:
                answer.token_ids.append(token)
        return without

    def finish(self, answer: Answer) -> None:
        """Take an answer out and keep what was read for the channel's next turn."""
        layers = self.drop(answer)
        self.caches.put(self._key(answer.channel), Read(answer.token_ids[:-1], layers))

    def drop(self, answer: Answer) -> KeysValues:
        """Take an answer out; returns what was read."""
        row = self.answers.index(answer)
        with torch.inference_mode():
            layers = self._cache.remove(row)
        self.answers[row] = self.answers[-1]
        self.answers.pop()
        return layers

    def abandon(self) -> list[Answer]:
        """Take all answers out and keep nothing, as after an error."""
        abandoned, self.answers = self.answers, []
        self._cache.clear()
        return abandoned

    @torch.inference_mode()
    def bytes_per_token(self) -> int:
        """What the keys and values of one token take, measured with one."""
        cache = empty_cache()
        self.model(
            input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device),
            past_key_values=cache,
            use_cache=True,
        )
        return Read([0], keys_values(cache)).bytes

    def _key(self, channel: str) -> tuple[str, bool]:
        """What the base model read is not what the adapter reads."""
        return channel, self.use_adapter

    def _adapter(self) -> Any:
        return nullcontext() if self.use_adapter else self.model.disable_adapter()


def _choose(answers: Sequence[Answer], logits: torch.Tensor) -> list[int | None]:
    return choose(logits, [it.chooser for it in answers], [it.token_ids for it in answers])
