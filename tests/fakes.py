"""Stand-ins for what is slow or far away: a tiny tokenizer, a tiny model, invented chat."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import Voice, server_voice
from discord_lora.inference.backend import BackendStatus, Request
from discord_lora.messages.record import Message

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL_LIKE = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{{ '<s>' }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% if m.role == 'user' %}{{ '[INST] ' }}{% if loop.last and system is defined %}"
    "{{ system + '\\n\\n' }}{% endif %}{{ m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
GEMMA_LIKE = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim "
    "+ '<|im_end|>\\n' }}{% endfor %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
MONDAY = datetime(2026, 3, 2, 18, 0, tzinfo=UTC)


def make_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of a few hundred tokens; made in milliseconds."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["hello there, how are you? I am fine. what's up\n"] * 20, trainer)
    end = "<|im_end|>" if chat_template == CHATML else "</s>"
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token=end,
        pad_token=end,
        chat_template=chat_template,
    )


def make_sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before each text by itself, as Llama 2 and Mistral do."""
    text = "hello there how are you I am fine what's up hi Bob: Cy: Ada: you? You"
    words = text.split()
    pieces = [*SPECIAL, "<unk>", "\n", "▁", *(chr(n) for n in range(33, 127))]
    vocabulary = {
        piece: n for n, piece in enumerate([*pieces, *dict.fromkeys("▁" + w for w in words)])
    }
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix=""))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    core.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=MISTRAL_LIKE
    )


def make_model(vocabulary: int = 400, seed: int = 0, hidden: int = 32) -> Any:
    """A Llama of two layers with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).requires_grad_(False)


def says_letters(model: Any, tokenizer: Any) -> Any:
    """Let the model answer in letters whatever it reads; which ones is left to its weights."""
    letters = tokenizer.convert_tokens_to_ids([*"abcdefghijklmnopqrstuvwxyz"])
    head, embedding = model.lm_head.weight.data, model.get_input_embeddings().weight.data
    # One direction is common to all that is read, and it points to the letters.
    embedding[:, 0] = 1.0
    head[:, 0] = -10.0
    head[letters, 0] = 10.0
    return model


def recites_the_alphabet(model: Any, tokenizer: Any) -> Any:
    """Let each letter follow the one before, a line break the last, and `a` the line break."""
    order = tokenizer.convert_tokens_to_ids(["Ċ", *"abcdefghijklmnopqrstuvwxyz"])
    head, embedding = model.lm_head.weight.data, model.get_input_embeddings().weight.data
    for place, (token, following) in enumerate(zip(order, [*order[1:], order[0]], strict=True)):
        embedding[token, place] = 1.0
        head[following, place] = 10.0
    return model


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 24, "attn_implementation": "eager"},
    "gemma3_text": {"head_dim": 8, "sliding_window": 24},
}
"""What a tiny model of each family needs besides the sizes: windows shorter than a prompt, and
eager attention for capped scores, as `load_base_model` chooses it."""


def make_model_of(family: str, vocabulary: int = 400, seed: int = 0) -> Any:
    """A random model of another family, with windows shorter than the tests' prompts."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        initializer_range=0.1,  # so that every token depends on all before it
        **{"attn_implementation": "sdpa"} | FAMILIES[family],
    )
    return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


def always_says(model: Any, token_id: int) -> None:
    """Let the model's head prefer one token, whatever was said."""
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    torch.nn.init.zeros_(head.weight)
    head.bias.data.zero_()
    head.bias.data[token_id] = 100.0
    model.lm_head = head.requires_grad_(False)


def say(
    author: str,
    content: str = "hello there",
    *,
    minute: float = 0.0,
    id: str = "",
    channel: str = "general",
    **fields: Any,
) -> Message:
    """A message; `minute` counts from a Monday evening."""
    return Message(
        id=id or f"{author}-{channel}-{minute}",
        guild="Guild",
        channel_id=channel,
        channel=channel,
        timestamp=MONDAY + timedelta(minutes=minute),
        author_id=f"id-{author}",
        author=author,
        username=author.lower(),
        content=content,
        **fields,
    )


def conversation(*messages: Message, id: str = "c") -> Conversation:
    return Conversation(id, messages[0].channel_id, tuple(messages))


def contents(messages: Iterable[Message]) -> list[str]:
    return [message.content for message in messages]


def chatter(
    count: int, people: Sequence[str] = ("Ada", "Bob", "Cy"), **fields: Any
) -> list[Message]:
    """`count` invented messages, one a minute, of people taking turns."""
    words = ["hello", "there", "how", "are", "you", "fine", "what's up", "I am"]
    return [
        say(
            people[number % len(people)],
            " ".join(words[(number * step) % len(words)] for step in range(1, 2 + number % 5)),
            minute=number,
            id=f"m{number}",
            **fields,
        )
        for number in range(count)
    ]


class FakeBackend:
    """A backend that says what a test has queued: a text, or an exception to raise.

    With nothing queued it echoes the last message. `hold` keeps every answer from going on.
    """

    def __init__(self, voice: Voice | None = None) -> None:
        self.voice = voice or server_voice("Lora")
        self.queued: list[str | Exception] = []
        self.requests: list[Request] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.seconds_a_word = 0.0
        self.reloaded: list[Path] = []
        self.running = 0

    def enqueue(self, *answers: str | Exception) -> None:
        self.queued.extend(answers)

    def prompt(self, conversation: Conversation) -> list[int]:
        return list(self.prompt_text(conversation).encode())

    def prompt_text(self, conversation: Conversation) -> str:
        return "".join(f"{it.author}: {it.content}\n" for it in conversation.messages)

    async def reply(self, request: Request) -> AsyncIterator[str]:
        self.requests.append(request)
        last = request.conversation.messages[-1]
        answer = self.queued.pop(0) if self.queued else f"you said {last.content}"
        self.running += 1
        try:
            await self.hold.wait()
            if isinstance(answer, Exception):
                raise answer
            for word in re.findall(r"\S*\s*", answer):
                await asyncio.sleep(self.seconds_a_word)
                if word:
                    yield word
        finally:
            self.running -= 1

    def status(self) -> BackendStatus:
        return BackendStatus("a test", "none", "fake", 0, self.running, len(self.requests), 12.5, 0)

    async def reload(self, folder: Path) -> None:
        self.reloaded.append(folder)

    async def close(self) -> None:
        pass
