"""A disk that fills up while a training saves: it has to wait, lose nothing, and end the same.

The real training script runs three times: undisturbed; with adapters and logs on a small disk that
is filled from outside, in the middle of a checkpoint and once more when the adapter is to be
written; and stopped by Ctrl+C while it waits, then continued by the same command. What the run
frees by removing older checkpoints is filled, too, so that in the end it has to wait. Each has to
end with the same adapter, byte for byte.

The small disk is mounted in a temporary folder, which takes Linux and root. Without these nothing
is measured, and the script says so.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from discord_lora.console import UserError, make_console, plainly, run_script
from discord_lora.finetuning.manifest import damage
from discord_lora.finetuning.run_folder import UNTRAINED
from discord_lora.script_options import script_parser

ROOT = Path(__file__).resolve().parent.parent
TRAIN = [sys.executable, "training/train_lora.py"]
EXAMPLES = """\
  python benchmarks/full_disk.py                              the sample model on a small tmpfs
  python benchmarks/full_disk.py --kind ext4                  on an ext4 image
  python benchmarks/full_disk.py --base-model ./models/tiny --steps 6"""
SECONDS_WATCHED = 25.0
"""How long a run is left alone with the full disk: two of its own looks and a half."""
MOST_SECONDS = 600.0
FULL = "The disk is full"
ROOM_AGAIN = "there is room again"
FILLER = "filler"
CHECKPOINTS_THAT_FIT = 5.0
"""As many as the preflight wants room for (four and the adapter), and some more."""
LOOK_EACH_SECONDS = 0.002


@dataclass(slots=True)
class Figures:
    """What was seen."""

    checkpoint_bytes: int = 0
    disk_bytes: int = 0
    lines_while_full: list[int] = field(default_factory=list)
    """How often each waiting was said in the log."""
    seconds_until_it_went_on: list[float] = field(default_factory=list)
    """From the moment when there was room."""


def main() -> int | None:
    args = parse_arguments()
    say = plainly(make_console())
    if reason := why_not():
        say(f"Nothing was measured: {reason}.")
        return None
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        figures = measure(args, Path(folder), say)
    say(
        f"{args.kind} of {figures.disk_bytes / 1e6:.1f} MB, a checkpoint takes "
        f"{figures.checkpoint_bytes / 1e6:.1f} MB\n"
        f"lines in the log for {SECONDS_WATCHED:.0f} s of waiting: {figures.lines_while_full}\n"
        "seconds from room to a saved file: "
        f"{[round(seconds, 1) for seconds in figures.seconds_until_it_went_on]}\n"
        "adapters of the undisturbed, the filled, and the stopped and continued run: equal"
    )
    return None


def parse_arguments() -> argparse.Namespace:
    parser = script_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--kind", choices=("tmpfs", "ext4"), default="tmpfs", help="of small disk")
    parser.add_argument("--base-model", default="sample", help="(default: sample)")
    parser.add_argument("--data", type=Path, help="training_data.jsonl (default: the sample chat)")
    parser.add_argument("--steps", type=int, default=8, help="four or more (default: 8)")
    return parser.parse_args()


def why_not() -> str:
    """Why no small disk can be mounted here; empty if one can."""
    if sys.platform != "linux":
        return "a small disk is mounted on Linux only"
    return "" if os.geteuid() == 0 else "mounting a small disk takes root"


def measure(args: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Figures:
    """The three runs. Raises UserError where one does not do as it should."""
    figures = Figures()
    data = training_data(args.data, folder, say)
    say("a run on a disk with room ...")
    plain = Run(args, data, folder / "plain")
    plain.start()
    plain.ends_with(0)
    expected = plain.adapter.read_bytes()
    figures.checkpoint_bytes = bytes_in(plain.checkpoints()[-1])
    figures.disk_bytes = int(CHECKPOINTS_THAT_FIT * figures.checkpoint_bytes) + (1 << 20)

    say("the same on a small disk that fills up ...")
    with small_disk(args.kind, figures.disk_bytes, folder / "small") as disk:
        run = Run(args, data, disk)
        run.start()
        run.wait_for(run.has_learned, "a checkpoint")
        half = figures.checkpoint_bytes // 2  # so that it is full in the middle of a save
        watch_it_wait(run, figures, leave=half)
        run.ends_with(0)
        require(run.adapter.read_bytes() == expected, "the adapter is another one")
        run.back_to_the_last_checkpoint()
        half = len(expected) // 2  # full again when the adapter is to be written
        fill(disk, half)
        run.start()
        watch_it_wait(run, figures, leave=half)
        run.ends_with(0)
        require(run.adapter.read_bytes() == expected, "the adapter is another one")

    say("the same, stopped while it waits, and continued ...")
    with small_disk(args.kind, figures.disk_bytes, folder / "stopped") as disk:
        run = Run(args, data, disk)
        run.start()
        run.wait_for(run.has_learned, "a checkpoint")
        fill_until_it_waits(run, figures.checkpoint_bytes // 2)
        run.process.send_signal(signal.SIGINT)
        run.ends_with(130)
        run.filler.unlink()
        run.start()
        run.ends_with(0)
        require("going on after step" in run.output(), "it began anew")
        require(run.adapter.read_bytes() == expected, "the adapter is another one")
    return figures


class Run:
    """The training script with adapters and logs below `folder`."""

    def __init__(self, args: argparse.Namespace, data: Path, folder: Path) -> None:
        settings = {
            "training-data-path": data,
            "base-model": args.base_model,
            "output-dir": folder / "adapters",
            "logs-dir": folder / "logs",
            "run-name": "run",
            "max-steps": args.steps,
            "save-every-steps": 1,
            "gradient-accumulation-steps": 4,
            "max-seq-length": 256,
            "max-validation-messages": 20,
            "log-every-steps": 1,
            "sample-answers": 0,  # they would take most of the time, at each checkpoint
        }
        self.command = [*TRAIN, *(str(w) for k, v in settings.items() for w in (f"--{k}", v))]
        self.folder = folder / "adapters" / "run"
        self.adapter = self.folder / "adapter_model.safetensors"
        self.filler = folder / FILLER
        # Not on the small disk: it has to be readable while that is full.
        self._output = data.parent / f"{folder.name}.txt"

    def start(self) -> None:
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )

    def output(self) -> str:
        """What it said, on the console: the log is on the full disk."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def checkpoints(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("checkpoints/step-*") if not p.suffix)

    def has_learned(self) -> bool:
        """There is a checkpoint after a step, beside the one before the first."""
        return any(path.name != UNTRAINED for path in self.checkpoints())

    def back_to_the_last_checkpoint(self) -> None:
        """As it is when only the adapter is missing, and no older checkpoint can make room."""
        for path in self.checkpoints()[:-1]:
            shutil.rmtree(path)
        (self.folder / "run.json").unlink()
        self.adapter.unlink()

    def wait_for(self, happened: Callable[[], bool], what: str) -> float:
        """Seconds until it happened."""
        began = time.monotonic()
        while not happened():
            require(self.process.poll() is None, f"it ended before {what}:\n{self.output()}")
            require(time.monotonic() - began < MOST_SECONDS, f"{what} did not come")
            time.sleep(LOOK_EACH_SECONDS)
        return time.monotonic() - began

    def ends_with(self, code: int) -> None:
        found = self.process.wait(MOST_SECONDS)
        require(found == code, f"it ended with {found} and not with {code}:\n{self.output()}")
        require("Traceback" not in self.output(), self.output())


def fill_until_it_waits(run: Run, leave: int) -> None:
    """Fill the run's disk again and again: it first removes what checkpoints it can spare."""
    before = run.output().count(FULL)

    def waits() -> bool:
        fill(run.filler.parent, leave)
        return run.output().count(FULL) > before

    run.wait_for(waits, "the sentence about the disk")


def watch_it_wait(run: Run, figures: Figures, *, leave: int) -> None:
    """It has to say so once, wait, leave nothing torn behind, and go on when there is room."""
    before = run.output().count(FULL)
    fill_until_it_waits(run, leave)
    waiting = run.output().count(ROOM_AGAIN)
    deadline = time.monotonic() + SECONDS_WATCHED
    while time.monotonic() < deadline:
        require(run.process.poll() is None, f"it did not wait:\n{run.output()}")
        time.sleep(0.1)
    figures.lines_while_full.append(run.output().count(FULL) - before)
    require(figures.lines_while_full[-1] == 1, "it said so more than once")
    require(not damage(run.checkpoints()[-1]), "the newest checkpoint is torn")
    require(not (run.folder / "run.json").exists(), "a torn adapter counts as finished")
    run.filler.unlink()
    seconds = run.wait_for(lambda: run.output().count(ROOM_AGAIN) > waiting, "the run to go on")
    figures.seconds_until_it_went_on.append(seconds)


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UserError(otherwise)


def training_data(path: Path | None, folder: Path, say: Callable[[str], None]) -> Path:
    """A copy: the cache beside it is not to fill the small disk."""
    from discord_lora.messages.prepare import PrepareOptions, prepare
    from discord_lora.sample import sample_chat_export

    copy = folder / "chat.jsonl"
    if path is None:
        prepare(PrepareOptions((sample_chat_export(ROOT, say),), copy))
    else:
        shutil.copyfile(path, copy)
    return copy


@contextmanager
def small_disk(kind: str, size: int, folder: Path) -> Iterator[Path]:
    """A file system of `size` bytes mounted at `folder`."""
    folder.mkdir()
    image = folder.with_suffix(".image")
    if kind == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    else:
        with image.open("wb") as file:
            file.truncate(size + (1 << 20))  # its own tables
        subprocess.run(
            ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)],  # noqa: S607
            check=True,
        )
        mount = ["mount", "-o", "loop", str(image), str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def fill(disk: Path, leave: int) -> None:
    """Fill it up but for `leave` bytes."""
    with (disk / FILLER).open("ab", buffering=0) as file:
        try:
            while (room := shutil.disk_usage(disk).free - leave) > 0:
                file.write(bytes(min(room, 1 << 20)))
        except OSError:
            pass  # full


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    run_script(main)
