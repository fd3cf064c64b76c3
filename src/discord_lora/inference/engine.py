"""Conversation in, reply out: the base model with its adapter, answering as the trained voice."""

import random
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from transformers import StoppingCriteria, TextIteratorStreamer

from discord_lora.adapter_folder import RunInfo, load_adapter, read_run_info
from discord_lora.base_model import (
    Report,
    linear_layers,
    load_base_model,
    load_tokenizer,
)
from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import PromptFormat, Voice
from discord_lora.hardware import Hardware
from discord_lora.model_location import locate_base_model
from discord_lora.settings import Settings


@dataclass(frozen=True, slots=True)
class Sampling:
    """How words are picked."""

    temperature: float
    top_p: float
    min_p: float
    repetition_penalty: float
    max_reply_tokens: int

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            temperature=settings.temperature,
            top_p=settings.top_p,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
            max_reply_tokens=settings.max_reply_tokens,
        )

    def generate_options(self) -> dict[str, Any]:
        """The same in the words of `transformers.generate`."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_reply_tokens,
            "repetition_penalty": self.repetition_penalty,
            "do_sample": self.temperature > 0,
        }
        if self.temperature > 0:
            options |= {
                "temperature": self.temperature,
                "top_p": self.top_p,
                "min_p": self.min_p,
                "top_k": 0,
            }
        return options


class ReplyEngine:
    """Answers conversations. One reply at a time."""

    def __init__(self, model: Any, tokenizer: Any, voice: Voice, *, max_prompt_tokens: int) -> None:
        self.model = model.eval()
        self.prompt_format = PromptFormat(tokenizer, voice)
        self.max_prompt_tokens = max_prompt_tokens

    @property
    def voice(self) -> Voice:
        return self.prompt_format.voice

    @classmethod
    def load(cls, folder: Path, hardware: Hardware, report: Report) -> Self:
        """Base model and adapter of a finished run.

        Raises:
            UserError: the adapter is not finished or speaks another prompt format, or its base
                model cannot be loaded.
        """
        info: RunInfo = read_run_info(folder)
        location = locate_base_model(info.base_model, report)
        tokenizer = load_tokenizer(location)
        base = load_base_model(location, hardware, info.quantization)
        if info.quantization == "nf4" and not hardware.is_cuda:
            base = _unpacked_if_it_fits(base, hardware)
        model = load_adapter(base, folder)
        longest = int(info.settings.get("max_seq_length") or 1024)
        return cls(model, tokenizer, info.voice, max_prompt_tokens=longest)

    def prompt(self, conversation: Conversation) -> list[int]:
        """Tokens of as much of the conversation's end as training could have seen at once."""
        messages = conversation.messages
        while True:
            token_ids = self.prompt_format.encode_prompt(replace(conversation, messages=messages))
            if len(token_ids) <= self.max_prompt_tokens or len(messages) <= 1:
                return token_ids[-self.max_prompt_tokens :]
            # Dropping an eighth at a time keeps a long history from being rendered per message.
            messages = messages[max(1, len(messages) // 8) :]

    def reply(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        seed: int | None = None,
        use_adapter: bool = True,
    ) -> Iterator[str]:
        """Stream the reply, piece by piece as it is generated.

        Ends at the end-of-turn, at `max_reply_tokens`, or when the iterator is closed.
        `use_adapter=False` lets the base model answer the same prompt.
        """
        prompt = torch.tensor([self.prompt(conversation)], device=self.model.device)
        streamer = TextIteratorStreamer(
            self.prompt_format.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        stop = _StopWhenAsked()
        worker = threading.Thread(
            target=self._generate, args=(prompt, sampling, seed, use_adapter, streamer, stop)
        )
        worker.start()
        try:
            yield from self._without_outer_space(streamer)
        finally:
            stop.asked = True
            worker.join()
        if stop.failure is not None:
            raise stop.failure

    def _generate(
        self,
        prompt: torch.Tensor,
        sampling: Sampling,
        seed: int | None,
        use_adapter: bool,
        streamer: TextIteratorStreamer,
        stop: "_StopWhenAsked",
    ) -> None:
        end = self.prompt_format.end_of_turn_id
        try:
            torch.manual_seed(random.getrandbits(32) if seed is None else seed % 2**32)
            with torch.no_grad(), nullcontext() if use_adapter else self.model.disable_adapter():
                self.model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    eos_token_id=end,
                    pad_token_id=end,
                    streamer=streamer,
                    stopping_criteria=[stop],
                    **sampling.generate_options(),
                )
        except Exception as failure:  # handed over to the thread that waits for the reply
            stop.failure = failure
            streamer.end()

    @staticmethod
    def _without_outer_space(pieces: Iterator[str]) -> Iterator[str]:
        """The reply without the space in front that some renderings begin with."""
        begun = False
        for piece in pieces:
            text = piece if begun else piece.lstrip()
            if text:
                begun = True
                yield text


def _unpacked_if_it_fits(model: Any, hardware: Hardware) -> Any:
    """The same weights in fp32, to the bit what the 4-bit layers compute with.

    Without a card, unpacking them anew for each token takes half of its time.
    """
    needed = 4 * sum(module.out_features * module.in_features for module in linear_layers(model))
    return model.dequantize() if needed < 0.5 * hardware.free_bytes() else model


class _StopWhenAsked(StoppingCriteria):
    """Ends generation from another thread."""

    asked = False
    failure: Exception | None = None

    def __call__(self, input_ids: Any, scores: Any, **_options: Any) -> Any:  # noqa: ARG002
        return torch.full((input_ids.shape[0],), self.asked, device=input_ids.device)
