"""How many replies a minute, and how soon the next one starts.

Two questions to the engine as the bot uses it, on an event loop:

- replies a minute with one channel and with several at once, each channel sending its next message
  when it has its answer;
- the time to the first word in a channel's second turn, with the first turn's cache and without.

Both with the same conversations of the sample chat, whose lengths differ. Without --adapter the
sample model gets a fresh adapter, which costs what a trained one costs; only the words are not
worth reading. Replies end where the model ends them, after --tokens at the latest; seeds are the
same in every run, so that it does the same work.
"""

import asyncio
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discord_lora.console import UserError, make_console, plainly, run_script
from discord_lora.settings import script_parser

if TYPE_CHECKING:
    from discord_lora.conversations.build import Conversation
    from discord_lora.inference.local_backend import LocalBackend

EXAMPLES = """\
  python benchmarks/reply_speed.py                       the sample model, 1 and 8 channels
  python benchmarks/reply_speed.py --adapter NAME        one of yours, below adapters/
  python benchmarks/reply_speed.py --channels 4 --json   other numbers, for scripts"""
SEED = 7
SHORTEST_TALK = 12
"""Messages of a conversation that is long enough to have something to reuse."""


@dataclass(frozen=True)
class Rate:
    channels: int
    replies_per_minute: float


@dataclass(frozen=True)
class Start:
    """Medians over the conversations of the time to the first word of the second turn."""

    prompt_tokens: float
    seconds_with_cache: float
    seconds_without: float


def main() -> int | None:
    parser = script_parser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("--adapter", type=Path, metavar="FOLDER", help="a finished adapter")
    add("--channels", type=int, default=8, metavar="N", help="channels at once (default: 8)")
    add("--replies", type=int, default=2, metavar="N", help="replies a channel (default: 2)")
    add("--tokens", type=int, default=16, metavar="N", help="longest reply (default: 16)")
    add("--json", action="store_true", help="the figures as JSON")
    args = parser.parse_args()
    if min(args.channels, args.replies, args.tokens) < 1:
        raise UserError("--channels, --replies and --tokens must be at least 1.")
    say = plainly(make_console(stderr=True))
    backend = open_sample(say) if args.adapter is None else open_adapter(args.adapter, say)
    talks = conversations(backend, args.channels, say)
    rates, start = asyncio.run(measure(backend, talks, args.replies, args.tokens, say))
    backend.close_now()
    if args.json:
        print(json.dumps({"rates": [asdict(it) for it in rates], "start": asdict(start)}))
    else:
        show(rates, start)
    return None


def open_sample(say: Any) -> "LocalBackend":
    """The built-in model with a fresh adapter of the usual size."""
    from peft import LoraConfig, get_peft_model

    from discord_lora.base_model import load_base_model, load_tokenizer
    from discord_lora.conversations.prompt_format import server_voice
    from discord_lora.hardware import detect_hardware
    from discord_lora.inference.local_backend import LocalBackend
    from discord_lora.model_location import locate_base_model

    location = locate_base_model("sample", say)
    hardware = detect_hardware()
    base = load_base_model(location, hardware, "none")
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    voice = server_voice("Bot")
    return LocalBackend(model, load_tokenizer(location), voice, max_prompt_tokens=1024)


def open_adapter(folder: Path, say: Any) -> "LocalBackend":
    from discord_lora.hardware import detect_hardware
    from discord_lora.inference.local_backend import LocalBackend

    return LocalBackend.load(folder, detect_hardware(), say)


def conversations(backend: "LocalBackend", count: int, say: Any) -> list["Conversation"]:
    """Beginnings of conversations of the sample chat, one a channel, of several lengths."""
    import tempfile

    from discord_lora.conversations.build import build_conversations
    from discord_lora.messages.prepare import PrepareOptions, prepare
    from discord_lora.messages.training_data import read_training_data
    from discord_lora.sample import sample_chat_export

    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        path = Path(folder) / "sample.jsonl"
        prepare(PrepareOptions((sample_chat_export(Path.cwd(), say),), path))
        messages = read_training_data(path).messages
    found = build_conversations(messages, gap_minutes=30)
    long = [it for it in found if len(it.messages) >= SHORTEST_TALK]
    long.sort(key=lambda it: len(backend.prompt(it)), reverse=True)
    # From the middle of the lengths: the longest are cut to the same length.
    middle = long[len(long) // 4 :: max(1, len(long) // (2 * count))][:count]
    if len(middle) < count:
        raise UserError(f"--channels: the sample chat has {len(middle)} conversations for it.")
    return middle


async def measure(
    backend: "LocalBackend", talks: list["Conversation"], replies: int, tokens: int, say: Any
) -> tuple[list[Rate], Start]:
    await talk(backend, talks[0], "warm-up", 1, tokens)
    rates = []
    for at_once in (1, len(talks)):
        rates.append(await rate(backend, talks, at_once, replies, tokens))
        say(f"{at_once} at once: {rates[-1].replies_per_minute:.1f} replies a minute")
    return rates, await second_turns(backend, talks)


async def rate(
    backend: "LocalBackend", talks: list["Conversation"], at_once: int, replies: int, tokens: int
) -> Rate:
    """All conversations, so many at the same time; the work is the same either way."""
    backend.batch.caches.clear()
    left = list(enumerate(talks))

    async def channel() -> None:
        while left:
            number, said = left.pop()
            await talk(backend, said, f"{at_once}-{number}", replies, tokens)

    began = time.perf_counter()
    await asyncio.gather(*(channel() for _ in range(at_once)))
    seconds = time.perf_counter() - began
    count = replies * len(talks)
    return Rate(at_once, 60 * count / seconds)


async def talk(
    backend: "LocalBackend", said: "Conversation", channel: str, replies: int, tokens: int
) -> None:
    """Replies to the conversation's last messages, one turn after the other."""
    for turn in range(replies, 0, -1):
        some = replace(said, messages=said.messages[: len(said.messages) - turn + 1])
        await first_word(backend, some, channel, tokens)


async def second_turns(backend: "LocalBackend", talks: list["Conversation"]) -> Start:
    """Each conversation's second turn from the first turn's cache, and from nothing."""
    known, unknown, lengths = [], [], []
    for number, said in enumerate(talks):
        before = replace(said, messages=said.messages[:-1])
        lengths.append(len(backend.prompt(said)))
        backend.batch.caches.clear()
        unknown.append(await first_word(backend, said, str(number), tokens=1))
        backend.batch.caches.clear()
        await first_word(backend, before, str(number), tokens=1)
        known.append(await first_word(backend, said, str(number), tokens=1))
    return Start(*(statistics.median(it) for it in (lengths, known, unknown)))


async def first_word(
    backend: "LocalBackend", said: "Conversation", channel: str, tokens: int
) -> float:
    """Let the whole reply be written; returns the seconds until its first word (or its end)."""
    from discord_lora.inference.backend import Request, Sampling

    sampling = Sampling(0.8, 0.95, 0.05, 1.0, max_reply_tokens=tokens)
    request = Request(said, sampling, channel, addressed=True, seconds=600, seed=SEED)
    began = time.perf_counter()
    first = None
    async for _ in backend.reply(request):
        first = first or time.perf_counter() - began
    return first or time.perf_counter() - began


def show(rates: list[Rate], start: Start) -> None:
    from rich.table import Table

    console = make_console()
    table = Table("channels at once", "replies a minute")
    for it in rates:
        table.add_row(str(it.channels), f"{it.replies_per_minute:.1f}")
    console.print(table)
    gain = rates[1].replies_per_minute / rates[0].replies_per_minute
    console.print(f"{rates[1].channels} channels at once: {gain:.2f} times the replies of one")
    table = Table("second turn", "prompt tokens", "seconds to the first word")
    tokens = f"{start.prompt_tokens:.0f}"
    table.add_row("with the channel's cache", tokens, f"{start.seconds_with_cache:.3f}")
    table.add_row("without", tokens, f"{start.seconds_without:.3f}")
    console.print(table)
    faster = start.seconds_without / start.seconds_with_cache
    console.print(f"with the cache it starts {faster:.1f} times as fast")


if __name__ == "__main__":
    run_script(main)
