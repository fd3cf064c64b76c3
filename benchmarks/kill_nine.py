"""Kill one training at random moments, again and again: is the adapter what it would have been?

    python benchmarks/kill_nine.py
    python benchmarks/kill_nine.py --kills 5 --seed 3

One run of a small model (random weights, LoRA, held-out loss after every few steps, sample
answers) goes undisturbed. The same command then runs in another folder and is killed from outside
(SIGKILL on POSIX, TerminateProcess on Windows), at a random moment of a step, a save, a
measurement or the start-up, and started again, until it has been killed as often as asked for.
Both adapters have to be the same, byte for byte, and no start may have begun anew or read a
checkpoint that is damaged.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from discord_lora.adapter_folder import WEIGHTS_FILE  # noqa: E402
from discord_lora.analysis.morning.history import read_history  # noqa: E402
from discord_lora.console import (  # noqa: E402
    UserError,
    make_console,
    make_progress,
    plainly,
    run_script,
)
from discord_lora.script_options import script_parser  # noqa: E402

EXAMPLES = """\
  python benchmarks/kill_nine.py                       50 kills, some 15 minutes on two cores
  python benchmarks/kill_nine.py --kills 5 --seed 3
"""
STEPS_A_KILL = 8
"""As many steps more to train for each kill, so that each meets another part of the run."""
LOOK_SECONDS = 0.005
SHARE_ANYWHERE = 0.25
"""Of the kills at any moment of the program; the others hit saving, measuring or a step."""


def main() -> int | None:
    parser = script_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="(default: 50)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(default: 1)")
    arguments = parser.parse_args()
    console = make_console()
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        torment = Torment(Path(folder), arguments.kills, random.Random(arguments.seed))  # noqa: S311
        plainly(console)(f"undisturbed: {torment.steps} steps")
        torment.run_to_the_end("calm")
        with make_progress(console) as progress:
            bar = progress.add_task("killed", total=arguments.kills)
            while torment.done < arguments.kills:
                torment.kill_once()
                progress.update(bar, completed=torment.done)
        torment.run_to_the_end("killed")
        return torment.verdict(plainly(console))


class Torment:
    """Two runs of the same training, of which one is killed."""

    def __init__(self, folder: Path, kills: int, draw: random.Random) -> None:
        from run_scripts import tiny_model_folder, write_chat

        self.folder, self.draw = folder, draw
        self.steps = 20 + STEPS_A_KILL * kills
        self.model = tiny_model_folder(folder)
        self.chat = write_chat(folder / "chat.jsonl")
        self.done = 0
        self.moments: Counter[str] = Counter()
        self.began = time.perf_counter()

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        """The training, as a program of its own."""
        words = {
            "training-data-path": self.chat,
            "base-model": self.model,
            "quantization": "none",
            "epochs": 1000,
            "max-steps": self.steps,
            "gradient-accumulation-steps": 8,
            "save-every-steps": 3,
            "eval-every-steps": 7,
            "log-every-steps": 1,
            "lora-dropout": 0.1,
            "learning-rate": 1e-3,
            "run-name": "run",
            "sample-answers": 1,
            "output-dir": self.folder / name / "adapters",
            "logs-dir": self.folder / name / "logs",
        }
        options = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        with (self.folder / f"{name}.out").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "training/train_lora.py", *options],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONUTF8": "1"},
            )

    def run_to_the_end(self, name: str) -> None:
        """Raises UserError: the run failed."""
        if self.start(name).wait():
            text = (self.folder / f"{name}.out").read_text(encoding="utf-8")
            raise UserError(f"The run did not end well; its last lines:\n{text[-2000:]}")

    def kill_once(self) -> None:
        """Start it, wait for a moment of the kind that was drawn, and kill it."""
        checkpoints = self._run("killed") / "checkpoints"
        process = self.start("killed")
        kind = "any" if self.draw.random() < SHARE_ANYWHERE else self.draw.choice(("save", "step"))
        after = self.draw.uniform(0.5, 11.0) if kind == "any" else self.draw.randint(0, 3)
        self._wait(process, kind, after, checkpoints)
        # A moment of its own within what was waited for.
        time.sleep(self.draw.expovariate(1 / 0.02))
        if process.poll() is not None:
            raise UserError(f"The run ended after {self.done} kills; more steps a kill are needed.")
        self.moments[_moment(checkpoints, self._events())] += 1
        process.kill()
        process.wait()
        self.done += 1

    def _events(self) -> list[dict[str, Any]]:
        return read_history(self.folder / "killed" / "logs" / "run")

    def _wait(
        self, process: "subprocess.Popen[bytes]", kind: str, after: float, checkpoints: Path
    ) -> None:
        """`any`: so many seconds; `save`: until it writes one more; `step`: so many steps."""
        if kind == "any":
            time.sleep(after)
            return
        before = len(self._events())
        wanted = before + 4 + 3 * int(after)  # start, plan and what was asked for
        while process.poll() is None:
            if kind == "save" and len(self._events()) > before + 2:
                if any(checkpoints.glob("*.partial")):
                    return
            elif kind == "step" and len(self._events()) >= wanted:
                return
            time.sleep(LOOK_SECONDS)

    def verdict(self, say: Callable[[str], None]) -> int:
        """Say what was seen; exit code 1 if the adapters differ."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.moments.most_common())
        say(f"killed {self.done} times: {kinds}")
        events = self._events()
        starts = [event["step"] for event in events if event["kind"] == "start"]
        say(f"went on after steps {', '.join(map(str, starts))}")
        damaged = sum(event.get("what") == "damaged_checkpoint" for event in events)
        say(f"checkpoints passed over as damaged: {damaged}")
        calm, killed = (
            (self._run(name) / WEIGHTS_FILE).read_bytes() for name in ("calm", "killed")
        )
        same = "the same, bit for bit" if calm == killed else "NOT the same"
        say(f"{time.perf_counter() - self.began:.0f} s; the adapters are {same}")
        return int(calm != killed)

    def _run(self, name: str) -> Path:
        return self.folder / name / "adapters" / "run"


def _moment(checkpoints: Path, events: list[dict[str, Any]]) -> str:
    """What the run is at, by its files and the last line of its history."""
    if any(checkpoints.glob("*.partial")):
        return "saving"
    last = events[-1]["kind"] if events else "nothing"
    if last in ("saved", "held_out", "answers", "step"):
        return f"after a line of kind {last}"
    return "starting"


if __name__ == "__main__":
    run_script(main)
