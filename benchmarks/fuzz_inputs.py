"""Broken settings files and broken training data: no traceback, little memory, little time.

Each case is a valid input that was damaged: bytes flipped, pieces cut out, doubled or moved, huge
numbers, values of other types, deep nesting, zero bytes, lone surrogates, UTF-16, very long lines,
keys that stand there twice. It goes through the code that the scripts run: settings files through
`parse_with_settings`; lines of training data through the reader of training_data.jsonl and on to
tokenized examples; every tenth also through `prepare`. A result or a UserError may come of it.
"""

import argparse
import json
import random
import re
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from discord_lora.console import UserError, make_console, plainly, run_script
from discord_lora.conversations.dataset import make_dataset
from discord_lora.messages.prepare import PrepareOptions, prepare
from discord_lora.messages.training_data import read_training_data
from discord_lora.script_options import add_setting_options, parse_with_settings, script_parser
from discord_lora.settings import Settings, load_settings

EXAMPLES = """\
  python benchmarks/fuzz_inputs.py                       10,000 of each kind
  python benchmarks/fuzz_inputs.py --count 500 --seed 7  others, and fewer
  python benchmarks/fuzz_inputs.py --start 2500 --count 2500   the second quarter of them"""
EXAMPLE_ENV = Path(__file__).resolve().parent.parent / ".env.example"
DEEP = 100_000
LONG = 1_000_000
PREPARED_EVERY = 10
LINES_A_FILE = 8

STRANGE_TEXTS = (
    "", " ", "0", "-1", "1e400", "-0.0", "nan", "inf", "9" * 25, "9" * 5_000, "1_000", "٣", "½",
    "true", "null", "None", "[]", "{}", "\x00", "a\x00b", "\ud83d", "\u202e", "\ufeff", "\u2028",
    "\x85", "\x1b[31m", "'", '"', "\\", "${PATH}", "$(x)", "`x`", "%s", "{0}", "#", "=", "../..",
    "C:\\new\\table", "~", "/dev/zero", "\r", "\n", "\r\n\r\n", "A" * 10_000, "2024-02-30",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "1e18", "18446744073709551616",
)  # fmt: skip
STRANGE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1e308, 2**63, 2**64, 10**30, -(10**30), 1.5, [], {}, [[]], [None],
    {"a": {"b": []}}, [{"role": "user"}], {"id": {}}, {"name": [1]}, [1] * 1000, *STRANGE_TEXTS,
)  # fmt: skip
RAW = (
    b"\x00", b"\xff", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\r",
    b"\x1a", b"PK\x03\x04", b"\\u0000", b"\\ud83d", b'\\"', b"NaN", b"-Infinity", b"1e99999",
    b"9" * 5_000, b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n\n", b"//", b"export ", b"\x0c",
)  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What a series of cases came to."""

    refused: int = 0
    taken: int = 0
    slowest_seconds: float = 0.0
    most_bytes: int = 0
    """Memory that Python took for one case beyond what it had."""
    longest_error: int = 0
    """Characters of the longest message."""
    failures: list[str] = field(default_factory=list)


def main() -> int | None:
    args = parse_arguments()
    say = plainly(make_console())
    failed = False
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        series: dict[str, Callable[[random.Random, Path], None]] = {
            "settings files": one_settings_file,
            "files of training data": TrainingDataLines(),
        }
        for name, one in series.items():
            if args.only not in name:
                continue
            before = psutil.Process().memory_info().rss
            began = time.perf_counter()
            outcome = fuzz(one, args.count, args.seed, Path(folder), start=args.start)
            grown = psutil.Process().memory_info().rss - before
            say(
                f"{args.count:,} {name} in {time.perf_counter() - began:.0f} s: "
                f"{outcome.taken:,} taken, {outcome.refused:,} refused in a sentence, "
                f"{len(outcome.failures):,} tracebacks\n"
                f"  slowest {outcome.slowest_seconds:.2f} s, most memory for one "
                f"{outcome.most_bytes / 1e6:.0f} MB, longest message "
                f"{outcome.longest_error:,} characters; the process grew by {grown / 1e6:.0f} MB"
            )
            if isinstance(one, TrainingDataLines):
                say(f"  {one.judged:,} lines judged one by one in the files that could be read")
            for failure in outcome.failures[:10]:
                say(f"  {failure}")
            failed = failed or bool(outcome.failures)
    return 1 if failed else None


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--count", type=int, default=10_000, help="of each kind (default: 10000)")
    parser.add_argument("--only", choices=("settings", "data"), default="", help="one kind")
    parser.add_argument("--start", type=int, default=0, help="with this case (default: 0)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same cases")
    return parser.parse_args()


def fuzz(
    one: Callable[[random.Random, Path], None],
    count: int,
    seed: int,
    folder: Path,
    *,
    start: int = 0,
) -> Outcome:
    """Run `count` cases, from number `start` on.

    Memory is measured in every twentieth, for it takes the time of ten.
    """
    outcome = Outcome()
    for number in range(start, start + count):
        chance = random.Random(f"{seed} {number}")  # noqa: S311 - no secret
        if number % 20 == 0:
            tracemalloc.start()
        began = time.perf_counter()
        try:
            one(chance, folder)
            outcome.taken += 1
        except UserError as error:
            outcome.refused += 1
            outcome.longest_error = max(outcome.longest_error, len(str(error)))
        except Exception as error:
            outcome.failures.append(f"case {number} of seed {seed}: {where(error)}")
        seconds = time.perf_counter() - began
        if tracemalloc.is_tracing():
            outcome.most_bytes = max(outcome.most_bytes, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()  # and leave its own slowness out
        else:
            outcome.slowest_seconds = max(outcome.slowest_seconds, seconds)
    return outcome


def where(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__}: {str(error)[:100]!r} at {place}"


# Settings --------------------------------------------------------------------------------------


def env_lines(chance: random.Random) -> list[str]:
    lines = re.sub("(?m)^# ?(?=[A-Z_]+=)", "", EXAMPLE_ENV.read_text(encoding="utf-8")).splitlines()
    chosen = [line for line in lines if "=" in line and chance.random() < 0.15]
    for number in range(len(chosen)):
        if chance.random() < 0.1:
            key = chosen[number].partition("=")[0]
            quote = chance.choice(["", "", '"', "'"])
            chosen[number] = f"{key}={quote}{chance.choice(STRANGE_TEXTS)}{quote}"
    return chosen


def one_settings_file(chance: random.Random, folder: Path) -> None:
    lines = env_lines(chance)
    kind = chance.randrange(12)
    if kind == 0:
        lines += [f"{chance.choice('ABC')}{n}=1" for n in range(chance.choice([1, 100, 20_000]))]
    elif kind == 1:
        lines.append(f"BOT_NAME={'x' * LONG}")
    elif kind == 2:
        lines.append("B" * LONG + "=1")
    elif kind == 3:
        lines.append(f'SYSTEM_PROMPT="{"[" * DEEP}')
    elif kind == 4:
        lines += ["no assignment", "=", "=x", "export", "A B=1", "'A'=1"] * chance.randint(1, 500)
    raw = encoded("\n".join(lines), chance)
    path = folder / ".env"
    path.write_bytes(damaged(raw, chance) if kind > 2 else raw)
    parser = script_parser("", "")
    add_setting_options(parser)
    parse_with_settings(parser, ["--env-file", str(path)])


# Training data ---------------------------------------------------------------------------------

PLAIN = {
    "id": "77", "guild": "g", "channel_id": "1", "channel": "talk",
    "timestamp": "2024-05-01T12:00:00+00:00", "author_id": "7", "author": "Ann",
    "content": "hello there, how are you?", "username": "ann", "reply_to": "76", "reactions": 2,
    "is_bot": False, "train": True,
}  # fmt: skip
OTHERS = {
    "text": "hi", "user": {"id": 5, "name": "Bo"}, "date": "3/4/2019", "reactions": [{"count": 2}],
}  # fmt: skip
READY = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}


class TrainingDataLines:
    """Reads files of a few lines and makes examples of them."""

    def __init__(self) -> None:
        self.tokenizer = tiny_tokenizer()
        self.done = 0
        self.judged = 0
        """Lines that were read or named as unreadable, each by itself."""

    def __call__(self, chance: random.Random, folder: Path) -> None:
        path = folder / "data.jsonl"
        path.write_bytes(data_file(chance))
        self.done += 1
        if self.done % PREPARED_EVERY == 0:
            with suppress(UserError):
                prepare(PrepareOptions((path,), folder / "prepared.jsonl"))
        settings = SETTINGS.model_copy(update={"training_data_path": path})
        data = read_training_data(path)
        self.judged += data.lines
        make_dataset(data, settings, self.tokenizer)


def data_file(chance: random.Random) -> bytes:
    lines = [data_line(chance, number) for number in range(chance.randint(1, LINES_A_FILE))]
    if chance.random() < 0.1:
        text = b"[" + b",".join(lines) + b"]"
    else:
        text = chance.choice([b"\n", b"\r\n", b"\n\n"]).join(lines)
    if chance.random() < 0.1:
        text = encoded(text.decode("utf-8", "replace"), chance)
    return damaged(text, chance)


def data_line(chance: random.Random, number: int) -> bytes:
    record: dict[str, Any] = deepcopy(chance.choice([PLAIN, PLAIN, OTHERS, READY, SHAREGPT]))
    if "id" in record:
        record["id"] = str(number)
    for key in list(record):
        if chance.random() < 0.15:
            record[key] = chance.choice(STRANGE_VALUES)
        elif chance.random() < 0.03:
            del record[key]
    turns = next((v for k, v in record.items() if k in ("messages", "conversations")), None)
    if isinstance(turns, list) and turns and chance.random() < 0.4:
        turn = chance.choice(turns)
        if isinstance(turn, dict):
            turn[chance.choice([*turn, "train"])] = chance.choice(STRANGE_VALUES)
    text = json.dumps(record, ensure_ascii=chance.random() < 0.5)
    kind = chance.randrange(200)
    if kind == 0:
        text = '{"content":' * DEEP
    elif kind == 1:
        text = text[:-1] + ', "more": ' + "[" * DEEP + "]" * DEEP + "}"
    elif kind == 2:
        text = text[:-1] + ', "id": "again", "content": {"twice": 1}}'
    elif kind == 3:
        text = text.replace("hello", "hello " * (LONG // 6))
    elif kind == 4:
        text = text * 50
    return text.encode("utf-8", "surrogatepass")


def tiny_tokenizer() -> Any:
    """Bytes as tokens, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["hello there, how are you?"], trainer)
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
        "{% endfor %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",  # noqa: S106 - no password
        chat_template=template,
    )


# Damage ----------------------------------------------------------------------------------------


def encoded(text: str, chance: random.Random) -> bytes:
    others = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]
    kind = chance.choice(["utf-8"] * 6 + others)
    return text.encode(kind, "replace" if kind == "cp1252" else "surrogatepass")


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """A few random changes of the bytes; sometimes none."""
    data = bytearray(raw)
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice([1, 1, 3, 20, 200]))
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[start % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[start:end]
        elif kind == 2:
            data[start:start] = data[start:end]
        elif kind == 3:
            data[start:end] = chance.choice(RAW)
        elif kind == 4:
            data[start:start] = chance.choice(RAW)
        else:
            del data[start:]
    return bytes(data)


SETTINGS: Settings = load_settings(env_file=None)

if __name__ == "__main__":
    run_script(main)
