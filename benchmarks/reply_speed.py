"""How many replies a minute, and how soon the next one starts.

Two questions to the engine as the bot uses it, on an event loop:

- replies a minute with one channel at a time and with several at once, each channel sending its
  next message when it has its answer. The first reply of a channel, for which the whole prompt is
  read, and the replies of the talk that goes on, for which only what is new is read, are measured
  one after the other: reading a long prompt keeps the processor busy with one channel, writing
  does not, so that batching helps the one less than the other;
- the time to the first word in a channel's second turn, with the first turn's cache and without.

The conversations are of the sample chat, and the bot's replies stand in it where a member's were.
Without --adapter the sample model gets a fresh adapter, which costs what a trained one costs; only
the words are not worth reading. Replies end where the model ends them, after --tokens at the
latest. Seeds are the same with one channel and with several, and so is the work.
"""

import asyncio
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discord_lora.console import UserError, make_console, plainly, run_script
from discord_lora.script_options import script_parser

if TYPE_CHECKING:
    from discord_lora.conversations.build import Conversation
    from discord_lora.inference.backend import Request
    from discord_lora.inference.local_backend import LocalBackend

EXAMPLES = """\
  python benchmarks/reply_speed.py                       the sample model, 1 and 8 channels
  python benchmarks/reply_speed.py --adapter NAME        one of yours, below adapters/
  python benchmarks/reply_speed.py --channels 4 --json   other numbers, for scripts"""
SEED = 7
LONGEST = 40
"""Tokens of a reply. 24 replies of an adapter trained on the sample chat had 21 on average, and one
of them was longer than this; what the model writes with a fresh adapter does not always end."""
BEFORE = 12
"""Messages at least that stand in a channel before its first reply."""


@dataclass(frozen=True)
class Rate:
    """Replies of all conversations, so many channels at a time."""

    channels: int
    replies: int
    tokens_read: float
    """A reply, on average; what the channel's cache had is not read."""
    tokens_written: float
    seconds: float

    @property
    def a_minute(self) -> float:
        return 60 * self.replies / self.seconds


@dataclass(frozen=True)
class Start:
    """Medians over the conversations of the time to the first word of the second turn."""

    prompt_tokens: float
    seconds_with_cache: float
    seconds_without: float


@dataclass(frozen=True)
class Measured:
    first: list[Rate]
    """With one channel and with all of them, while each gets its first reply."""
    going_on: list[Rate]
    """The same while the talk goes on."""
    start: Start


def main() -> int | None:
    parser = script_parser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("--adapter", type=Path, metavar="FOLDER", help="a finished adapter")
    add("--channels", type=int, default=8, metavar="N", help="channels at once (default: 8)")
    add("--turns", type=int, default=5, metavar="N", help="replies after the first (default: 5)")
    add("--tokens", type=int, default=LONGEST, metavar="N", help=f"longest reply ({LONGEST})")
    add("--json", action="store_true", help="the figures as JSON")
    args = parser.parse_args()
    if min(args.channels, args.turns, args.tokens) < 1:
        raise UserError("--channels, --turns and --tokens must be at least 1.")
    say = plainly(make_console(stderr=True))
    backend = open_sample(say) if args.adapter is None else open_adapter(args.adapter, say)
    said = conversations(backend, args.channels, 2 * args.turns, say)
    measured = asyncio.run(measure(backend, said, args.turns, args.tokens, say))
    backend.close_now()
    if args.json:
        print(json.dumps(asdict(measured)))
    else:
        show(measured)
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


def conversations(
    backend: "LocalBackend", count: int, after: int, say: Any
) -> list["Conversation"]:
    """Conversations of the sample chat, one a channel, of several lengths.

    Each has at least BEFORE messages before the last `after`.
    """
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
    long = [it for it in found if len(it.messages) > BEFORE + after]
    long.sort(key=lambda it: len(backend.prompt(it)), reverse=True)
    # From the middle of the lengths: the longest are cut to the same length.
    middle = long[len(long) // 4 :: max(1, len(long) // (2 * count))][:count]
    if len(middle) < count:
        raise UserError(f"--channels: the sample chat has {len(middle)} conversations for it.")
    return middle


class Channel:
    """A conversation that goes on: what members wrote, and in their place what the bot did."""

    def __init__(
        self, backend: "LocalBackend", name: str, said: "Conversation", turns: int, tokens: int
    ) -> None:
        self.backend = backend
        self.name = name
        self.longest = tokens
        self.said = list(said.messages)
        self.whole = said
        self.asked = len(self.said) - 2 * turns - 2
        """Index of the message that is answered next."""

    def shown(self) -> "Conversation":
        return replace(self.whole, messages=tuple(self.said[: self.asked + 1]))

    async def reply(self) -> float:
        """Let the next reply be written; returns the seconds until its first word (or its end)."""
        place = self.said[self.asked + 1]
        began = time.perf_counter()
        first, text = None, ""
        async for piece in self.backend.reply(self._request()):
            first = first or time.perf_counter() - began
            text += piece
        voice = self.backend.voice
        self.said[self.asked + 1] = replace(
            place, author_id=voice.speaker_id, author=voice.name, content=text or place.content
        )
        self.asked += 2
        return first or time.perf_counter() - began

    def _request(self) -> "Request":
        from discord_lora.inference.backend import Request, Sampling

        sampling = Sampling(0.8, 0.95, 0.05, 1.0, max_reply_tokens=self.longest)
        return Request(self.shown(), sampling, self.name, addressed=True, seconds=600, seed=SEED)


async def measure(
    backend: "LocalBackend", said: list["Conversation"], turns: int, tokens: int, say: Any
) -> Measured:
    await Channel(backend, "warm-up", said[0], turns, tokens).reply()
    first, going_on, starts = [], [], []
    for at_once in (1, len(said)):
        backend.batch.caches.clear()
        channels = [Channel(backend, f"{n}", it, turns, tokens) for n, it in enumerate(said)]
        lengths = [len(backend.prompt(it.shown())) for it in channels]
        rate, unknown = await replies(channels, at_once, 1)
        first.append(rate)
        rate, known = await replies(channels, at_once, turns)
        going_on.append(rate)
        starts.append((lengths, known[::turns], unknown))
        say(f"{at_once} at once: {first[-1].a_minute:.1f} and {rate.a_minute:.1f} replies a minute")
    # One at a time, so that nobody waits for another's prompt.
    return Measured(first, going_on, Start(*(statistics.median(it) for it in starts[0])))


async def replies(channels: list[Channel], at_once: int, turns: int) -> tuple[Rate, list[float]]:
    """So many replies in each channel, and the seconds until each began."""
    backend = channels[0].backend
    left = list(channels)
    starts = []

    async def one_after_the_other() -> None:
        while left:
            channel = left.pop(0)
            starts.extend([await channel.reply() for _ in range(turns)])

    counts, batch = backend._worker.counts, backend.batch
    written_before, read_before = counts.tokens, batch.prefilled_tokens
    began = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    seconds = time.perf_counter() - began
    count = turns * len(channels)
    read = (batch.prefilled_tokens - read_before) / count
    return Rate(at_once, count, read, (counts.tokens - written_before) / count, seconds), starts


def show(measured: Measured) -> None:
    from rich.table import Table

    console = make_console()
    at_once = measured.first[1].channels
    table = Table("replies a minute", "1 channel", f"{at_once} channels", "gain")
    table.add_column("tokens of each")
    for name, (one, many) in (
        ("the first in a channel", measured.first),
        ("while the talk goes on", measured.going_on),
    ):
        table.add_row(
            name,
            f"{one.a_minute:.1f}",
            f"{many.a_minute:.1f}",
            f"x {many.a_minute / one.a_minute:.2f}",
            f"{one.tokens_read:.0f} read, {one.tokens_written:.0f} written",
        )
    console.print(table)
    start = measured.start
    table = Table("second turn", "prompt tokens", "seconds to the first word")
    tokens = f"{start.prompt_tokens:.0f}"
    table.add_row("with the channel's cache", tokens, f"{start.seconds_with_cache:.3f}")
    table.add_row("without", tokens, f"{start.seconds_without:.3f}")
    console.print(table)
    faster = start.seconds_without / start.seconds_with_cache
    console.print(f"with the cache it starts {faster:.1f} times as fast")


if __name__ == "__main__":
    run_script(main)
