"""Talk to an adapter in the terminal."""

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from discord_lora.console import make_console, plainly, run_script
from discord_lora.script_options import add_setting_options, parse_with_settings, script_parser

if TYPE_CHECKING:
    from discord_lora.inference.dialogue import Dialogue

EXAMPLES = """\
  python scripts/chat.py                              the newest adapter
  python scripts/chat.py --adapter calm.heron-sample  another one below adapters/
  python scripts/chat.py --base                       the same model without the adapter
  python scripts/chat.py --message "hi" --json        one answer, for scripts

in the conversation:
  /reset   forget what was said         /retry     another answer to the last message
  /as NAME go on as somebody else       /quit      leave (or Ctrl+D, Ctrl+Z on Windows)
  Ctrl+C ends the answer that is running; at the prompt it leaves."""

SETTINGS = (
    "output_dir",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_reply_tokens",
)


def main() -> int | None:
    parser = script_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--adapter", help="folder or name below adapters/ (default: the newest)")
    parser.add_argument("--base", action="store_true", help="answer without the adapter")
    parser.add_argument("--name", default="You", help="name that you speak under (default: You)")
    parser.add_argument("--message", help="say this, print the answer and leave")
    parser.add_argument("--json", action="store_true", help="with --message: the answer as JSON")
    parser.add_argument(
        "--seed", dest="reply_seed", type=int, help="the same seed gives the same answer"
    )
    add_setting_options(parser, SETTINGS)
    args, settings = parse_with_settings(parser)
    if args.json and args.message is None:
        parser.error("--json needs --message")

    from discord_lora.adapter_folder import find_adapter
    from discord_lora.hardware import detect_hardware
    from discord_lora.inference.backend import Sampling
    from discord_lora.inference.dialogue import Dialogue
    from discord_lora.inference.local_backend import LocalBackend

    folder = find_adapter(settings.output_dir, args.adapter)
    # What is not the answer goes to stderr, so that scripts can read stdout.
    console = make_console(stderr=True)
    console.print(f"loading {folder}", markup=False)
    backend = LocalBackend.load(folder, detect_hardware(), plainly(console))
    dialogue = Dialogue(backend, Sampling.from_settings(settings), name=args.name)
    dialogue.use_adapter = not args.base
    dialogue.seed = args.reply_seed
    if args.message is not None:
        answer_once(dialogue, args.message, as_json=args.json, adapter=str(folder))
    else:
        console.print(
            f"You are talking to {backend.voice.name}. /reset /retry /as NAME /quit", markup=False
        )
        converse(dialogue)
    backend.close_now()
    return None


def answer_once(dialogue: "Dialogue", message: str, *, as_json: bool, adapter: str) -> None:
    """One answer for a script."""
    started = time.perf_counter()
    reply = "".join(dialogue.say(message)).strip()
    if not as_json:
        print(reply)
        return
    answer = {
        "reply": reply,
        "voice": dialogue.backend.voice.name,
        "adapter": adapter if dialogue.use_adapter else None,
        "seconds": round(time.perf_counter() - started, 3),
    }
    print(json.dumps(answer, ensure_ascii=True))


def converse(dialogue: "Dialogue") -> None:
    """Read, answer, until the input ends."""
    while True:
        try:
            line = input(f"{dialogue.name}: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command, _, argument = line.partition(" ")
        if command in {"/quit", "/exit"}:
            return
        if command == "/reset":
            dialogue.reset()
            print("(forgotten)")
        elif command == "/as" and argument.strip():
            dialogue.name = argument.strip()
        elif command == "/retry":
            show(dialogue, dialogue.retry())
        elif command.startswith("/"):
            print("(commands: /reset /retry /as NAME /quit)")
        elif line:
            show(dialogue, dialogue.say(line))


def show(dialogue: "Dialogue", pieces: Iterator[str] | None) -> None:
    """Print an answer as it comes; Ctrl+C ends it and keeps what was heard."""
    from discord_lora.inference.backend import GenerationFailed

    if pieces is None:
        print("(nothing was said yet)")
        return
    print(f"{dialogue.backend.voice.name}: ", end="", flush=True)
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
    except GenerationFailed as error:
        print(f"(the answer failed: {error}; the talk goes on)", end="")
    print()


if __name__ == "__main__":
    run_script(main)
