"""Kill one training at random moments, again and again: is the adapter what it would have been?

    python benchmarks/kill_nine.py
    python benchmarks/kill_nine.py --kills 5 --seed 3

One run of a small model (random weights, LoRA, held-out loss after every few steps, sample
answers) goes undisturbed. The same command then runs in another folder and is killed from outside
(SIGKILL on POSIX, TerminateProcess on Windows), at a random moment of a step, a save, a
measurement or the start-up, and started again, until it has been killed as often as asked for.
Both adapters have to be the same, byte for byte; no kill may leave a checkpoint that is there and
damaged; each start has to go on from the newest one; and with the default number of kills each
kind of moment has to be among them.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
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
from discord_lora.finetuning.checkpoints import checkpoint_path, saved_steps  # noqa: E402
from discord_lora.finetuning.manifest import damage  # noqa: E402
from discord_lora.script_options import script_parser  # noqa: E402

EXAMPLES = """\
  python benchmarks/kill_nine.py                       50 kills, some 15 minutes on two cores
  python benchmarks/kill_nine.py --kills 5 --seed 3
"""
KILLS = 50
KINDS = ("starting", "in a step", "measuring", "saving")
"""Of moments; one more is while sample answers are written."""
AFTER_A_LINE = {
    "step": "in a step",
    "held_out": "saving",
    "saved": "answering",
    "answers": "in a step",
}
"""What a run is at after a line of its history, by the line's kind."""
EVAL_EVERY_STEPS = 7
STEPS_A_KILL = 24
"""As many steps more to train for each kill, so that each meets another part of the run. A quick
machine does a hundred before a late kill."""
LEAST_STEPS = 200
"""Fewer are done before the latest moment of a kill."""
LOOK_SECONDS = 0.005
SHARE_ANYWHERE = 0.25
"""Of the kills at any moment of the program; the others hit saving, measuring or a step."""
MEAN_SECONDS_LATER = {"any": 0.02, "step": 0.02, "save": 0.005, "measure": 0.005}
"""From what was waited for to the kill."""


def main() -> int | None:
    parser = script_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--kills", type=int, default=KILLS, help=f"(default: {KILLS})")
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
        self.steps = max(LEAST_STEPS, 20 + STEPS_A_KILL * kills)
        self.model = tiny_model_folder(folder)
        self.chat = write_chat(folder / "chat.jsonl", 300)
        self.done = 0
        self.moments: Counter[str] = Counter()
        self.newest = 0
        """Step of the newest checkpoint that is there: from it the next start has to go on."""
        self.faults: list[str] = []
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
            "eval-every-steps": EVAL_EVERY_STEPS,
            "validation-fraction": 0.4,
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
        before = len(self._events())
        if self.start(name).wait():
            text = (self.folder / f"{name}.out").read_text(encoding="utf-8")
            raise UserError(f"The run did not end well; its last lines:\n{text[-2000:]}")
        if name == "killed":
            self.look_at_start(before)

    def kill_once(self) -> None:
        """Start it, wait for a moment of the kind that was drawn, and kill it."""
        before = len(self._events())
        process = self.start("killed")
        aimed_at = self.draw.choice(("save", "step", "measure"))
        kind = "any" if self.draw.random() < SHARE_ANYWHERE else aimed_at
        after = self.draw.uniform(0.5, 11.0) if kind == "any" else self.draw.randint(0, 3)
        self._wait(process, kind, after, before)
        # A moment of its own within what was waited for.
        time.sleep(self.draw.expovariate(1 / MEAN_SECONDS_LATER[kind]))
        if process.poll() is not None:
            raise UserError(f"The run ended after {self.done} kills; more steps a kill are needed.")
        self.moments[moment(self.checkpoints, self._events()[before:])] += 1
        process.kill()
        process.wait()
        self.look_at_start(before)
        self.look_at_checkpoints()
        self.done += 1

    @property
    def checkpoints(self) -> Path:
        return self._run("killed") / "checkpoints"

    def look_at_start(self, before: int) -> None:
        """Did the start go on from the newest, whose lines come after the first `before` ones?"""
        for event in self._events()[before:]:
            if event["kind"] == "start" and event["step"] != self.newest:
                self.faults.append(
                    f"a start went on after step {event['step']}, and step {self.newest} was there"
                )

    def look_at_checkpoints(self) -> None:
        """What a kill left: each checkpoint that has its name has to be whole."""
        steps = saved_steps(self.checkpoints)
        self.newest = max(steps, default=0)
        for step in steps:
            if reason := damage(checkpoint_path(self.checkpoints, step)):
                self.faults.append(f"kill {self.done + 1} left step {step} torn: {reason}")

    def _events(self) -> list[dict[str, Any]]:
        return read_history(self.folder / "killed" / "logs" / "run")

    def _wait(
        self, process: "subprocess.Popen[bytes]", kind: str, after: float, before: int
    ) -> None:
        """`any`: so many seconds; `step`: so many steps; `save`, `measure`: until it does that."""
        if kind == "any":
            time.sleep(after)
            return
        wanted = 4 + 3 * int(after)  # start, plan and what was asked for
        at_what = {"save": "saving", "measure": "measuring"}.get(kind)
        while process.poll() is None:
            lines = self._events()[before:]
            if kind == "step" and len(lines) >= wanted:
                return
            if len(lines) > 2 and moment(self.checkpoints, lines) == at_what:
                return
            time.sleep(LOOK_SECONDS)

    def verdict(self, say: Callable[[str], None]) -> int:
        """Say what was seen; exit code 1 if anything was not as it has to be."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.moments.most_common())
        say(f"killed {self.done} times: {kinds}")
        events = self._events()
        starts = [event["step"] for event in events if event["kind"] == "start"]
        say(f"went on after steps {', '.join(map(str, starts))}")
        damaged = sum(event.get("what") == "damaged_checkpoint" for event in events)
        say(f"checkpoints passed over as damaged: {damaged}")
        faults = [*self.faults, *["a checkpoint was passed over as damaged"] * damaged]
        if self.done >= KILLS:
            faults += [f"no kill when {kind}" for kind in KINDS if not self.moments[kind]]
        for fault in faults:
            say(f"NOT as it has to be: {fault}")
        calm, killed = (
            (self._run(name) / WEIGHTS_FILE).read_bytes() for name in ("calm", "killed")
        )
        same = "the same, bit for bit" if calm == killed else "NOT the same"
        say(f"{time.perf_counter() - self.began:.0f} s; the adapters are {same}")
        return int(calm != killed or bool(faults))

    def _run(self, name: str) -> Path:
        return self.folder / name / "adapters" / "run"


def moment(checkpoints: Path, lines: list[dict[str, Any]]) -> str:
    """What a start is at, by the files and by the lines that it has added to the history."""
    if not lines:
        return "starting"
    with suppress(OSError):  # it is there no more
        for path in checkpoints.glob("*.partial"):
            if path.stat().st_mtime >= lines[0]["time"]:  # else an earlier kill left it
                return "saving"
    last = lines[-1]
    if last["kind"] == "step" and last["step"] % EVAL_EVERY_STEPS == 0:
        return "measuring"
    return AFTER_A_LINE.get(last["kind"], "starting")


if __name__ == "__main__":
    run_script(main)
