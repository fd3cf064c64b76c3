"""How long it takes from training_data.jsonl to the plan of a run, and what the cache saves.

Each line is a process of its own: half of the messages, all of them, and all of them once more
from the cache. Half against all shows whether the time grows with the messages or faster. Memory
is the most that the work added to the loaded libraries. Everything happens on a copy in a
temporary folder: your own cache is neither used nor filled.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from discord_lora.console import UserError, make_console, plainly, run_script
from discord_lora.script_options import add_setting_options, parse_with_settings, script_parser
from discord_lora.settings import Settings

SECONDS_BETWEEN_LOOKS = 0.002
STAGES = ("read", "group", "tokenize", "plan", "from cache")
EXAMPLES = """\
  python benchmarks/dataset_speed.py                                   the sample chat
  python benchmarks/dataset_speed.py data/training_data.jsonl          your server's voice
  python benchmarks/dataset_speed.py data/training_data.jsonl --persona calm.heron"""


@dataclass(slots=True)
class Measured:
    """One process's work."""

    seconds: dict[str, float] = field(default_factory=dict)
    messages: int = 0
    tokens: int = 0
    added_bytes: int = 0

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def main() -> int | None:
    parser = script_parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "path", nargs="?", type=Path, help="a training_data.jsonl (default: the sample chat)"
    )
    add_setting_options(parser, ("persona", "base_model", "conversation_gap_minutes"))
    args, settings = parse_with_settings(parser)
    from discord_lora.model_location import locate_base_model

    console = make_console()
    location = locate_base_model(settings.base_model, plainly(console))
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        whole = Path(folder, "all.jsonl")
        copy_data(args.path, whole, console)
        half = copy_half(whole)
        in_a_process(measure_cached, settings, whole, location)  # fills the cache
        runs = {
            "half": in_a_process(measure_stages, settings, half, location),
            "all": in_a_process(measure_stages, settings, whole, location),
            "all, cached": in_a_process(measure_cached, settings, whole, location),
        }
    show(runs, console)
    return None


def copy_data(path: Path | None, to: Path, console: Console) -> None:
    from discord_lora.messages.prepare import PrepareOptions, prepare
    from discord_lora.sample import sample_chat_export

    if path is None:
        prepare(PrepareOptions((sample_chat_export(Path.cwd(), plainly(console)),), to))
    elif path.is_file():
        shutil.copyfile(path, to)
    else:
        raise UserError(f"There is no file {path}; name a training_data.jsonl.")


def copy_half(path: Path) -> Path:
    """The first half of the lines, beside `path`."""
    lines = path.read_bytes().splitlines(keepends=True)
    half = path.with_name("half.jsonl")
    half.write_bytes(b"".join(lines[: max(1, len(lines) // 2)]))
    return half


def in_a_process(
    work: Callable[[Settings, str], Measured], settings: Settings, path: Path, location: str
) -> Measured:
    """In a process of its own, whose memory no earlier run has grown."""
    settings = settings.model_copy(update={"training_data_path": path})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, settings, location).result()


def measure_stages(settings: Settings, location: str) -> Measured:
    """Each stage on its own, without the cache."""
    from discord_lora.base_model import load_tokenizer
    from discord_lora.conversations.dataset import group, tokenize
    from discord_lora.conversations.packing import plan_training
    from discord_lora.messages.cycle_collection import without_cycle_collection
    from discord_lora.messages.training_data import read_training_data

    tokenizer = load_tokenizer(location)
    found = Measured()
    with peak_memory(found), without_cycle_collection():
        with found.stage("read"):
            data = read_training_data(settings.training_data_path)
        with found.stage("group"):
            grouped = group(data, settings)
        with found.stage("tokenize"):
            examples = tokenize(grouped, settings, tokenizer).training_examples
        with found.stage("plan"):
            plan = plan_training(
                examples,
                messages_per_step=settings.messages_per_step,
                epochs=settings.epochs,
                max_steps=0,
                seed=settings.seed,
            )
            next(plan.walk())
    found.messages = len(data.messages) or len(data.conversations)
    found.tokens = sum(map(len, examples))
    return found


def measure_cached(settings: Settings, location: str) -> Measured:
    """As training opens its dataset once more."""
    from discord_lora.base_model import load_tokenizer
    from discord_lora.conversations.dataset_cache import open_dataset

    tokenizer = load_tokenizer(location)
    found = Measured()
    with peak_memory(found), found.stage("from cache"):
        examples = open_dataset(settings, lambda: tokenizer, lambda _: None).training_examples
    found.tokens = sum(map(len, examples))
    return found


@contextmanager
def peak_memory(found: Measured) -> Iterator[None]:
    """Note the most memory that the block adds, looked at every few milliseconds."""
    memory = psutil.Process().memory_info
    before = memory().rss
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            found.added_bytes = max(found.added_bytes, memory().rss - before)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def show(runs: dict[str, Measured], console: Console) -> None:
    table = Table("", "messages", "tokens", *STAGES, "seconds", "messages/s", "memory MB")
    runs["all, cached"].messages = runs["all"].messages
    for name, run in runs.items():
        seconds = (f"{run.seconds[it]:.2f}" if it in run.seconds else "" for it in STAGES)
        table.add_row(
            name,
            f"{run.messages:,}",
            f"{run.tokens:,}",
            *seconds,
            f"{run.total_seconds:.2f}",
            f"{run.messages / run.total_seconds:,.0f}",
            f"{run.added_bytes / 1e6:,.0f}",
        )
    console.print(table)
    times = runs["all"].messages / runs["half"].messages
    slower = runs["all"].total_seconds / runs["half"].total_seconds
    console.print(f"{times:.2f} times the messages take {slower:.2f} times the seconds")


if __name__ == "__main__":
    run_script(main)
