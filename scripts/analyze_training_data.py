"""See what is in the data before training: people, lengths, answers, quality, and what to do.

Reads data/training_data.jsonl, or straight the exports that are named. Nothing is changed, and of
the messages nothing is shown but what --explain or --show-sample ask for.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from discord_lora.console import UserError, make_console, plainly, run_script
from discord_lora.settings import (
    Settings,
    add_setting_options,
    parse_with_settings,
    script_parser,
    write_env,
)

if TYPE_CHECKING:
    from discord_lora.analysis.data_report import Preparation
    from discord_lora.analysis.measure import CountTokens

EXAMPLES = """\
  python scripts/analyze_training_data.py                         the whole report
  python scripts/analyze_training_data.py exports/                of exports, not yet prepared
  python scripts/analyze_training_data.py --json report.json      the same figures for programs
  python scripts/analyze_training_data.py --explain 1419408018537316453
                                                     why a message has its quality score
  python scripts/analyze_training_data.py --show-sample 3         what is trained on
  python scripts/analyze_training_data.py --ready-by 07:00 --write-env
                                                     the night's plan, into .env
  python scripts/analyze_training_data.py --calibrate             and its times measured here
  python scripts/analyze_training_data.py --timezone Europe/Berlin --no-tokens

In a sample the trained tokens are green; where there is no colour they stand in >> <<.
Sections of the JSON: source, overview, authors, lengths, activity, channels, engagement, quality,
content, duplicates, languages, private_data, findings; --json-keys lists every key."""

SETTINGS = (
    "training_data_path",
    "persona",
    "bot_name",
    "system_prompt",
    "base_model",
    "conversation_gap_minutes",
    "validation_fraction",
    "max_seq_length",
    "context_tokens",
    "quantization",
    "lora_r",
    "gradient_checkpointing",
    "max_tokens_per_microbatch",
    "packing",
    "epochs",
    "max_steps",
    "learning_rate",
    "max_validation_messages",
    "save_every_steps",
    "logs_dir",
    "batch_size",
    "gradient_accumulation_steps",
    "seed",
)


def main() -> int | None:
    args, settings = parse_with_settings(make_parser())
    from discord_lora.analysis import explain, measure, report_files, report_page
    from discord_lora.analysis.activity import check_timezone

    if args.json_keys:
        print(report_files.key_table())
        return None
    check_timezone(args.timezone)
    console = make_console()
    with training_data(args, settings, console) as (path, preparation):
        columns = report_files.read_with_progress(path, console)
        options = measure.Options(
            settings.conversation_gap_minutes,
            args.timezone,
            settings.base_model,
            None if args.no_tokens else token_counter(settings, console),
            preparation,
        )
        with console.status("measuring", spinner="line"):
            measures = measure.measure(columns, options)
            report = measure.make_report(columns, measures, options)
        explanations = [explain.explain(measures, message_id) for message_id in args.explain]
        if args.json:
            report_files.write_json(report, args.json)
        report_page.print_page(console, report)
        explain.print_explanations(console, explanations)
        if args.show_sample is not None:
            from discord_lora.analysis.training_view import show_training_view

            settings = settings.model_copy(update={"training_data_path": path})
            show_training_view(settings, max(0, args.show_sample), console)
        if not (args.no_plan or args.no_tokens):
            filtered = any(finding.key == "filtered_already" for finding in report.findings)
            try:
                plan_the_night(args, settings, console, looks_filtered=filtered)
            except UserError as error:
                if wants_plan(args):
                    raise
                console.print("No plan of the night: " + " ".join(error.problems), markup=False)
    return None


def wants_plan(args: argparse.Namespace) -> bool:
    """True if the plan was asked for; else it is an extra that may fail."""
    numbers = (args.seconds_per_step, args.hours)
    return bool(args.calibrate or args.gpu or args.ready_by or args.write_env) or any(
        number is not None for number in numbers
    )


def plan_the_night(
    args: argparse.Namespace, settings: Settings, console: Console, *, looks_filtered: bool
) -> None:
    """Memory, choices and what ends in time; if asked for, the lines for .env are written."""
    from discord_lora.analysis import plan_page
    from discord_lora.analysis.night import plan_for
    from discord_lora.finetuning.forecast import Asked, forecast

    now = datetime.now().astimezone()
    seconds = plan_page.seconds_allowed(args.ready_by, args.hours, now)
    asked = Asked(args.gpu, args.calibrate, args.seconds_per_step, looks_filtered)
    plan = forecast(settings, asked, console)
    plan_page.show_plan(plan, settings, console, classic=args.seconds_per_step or 0.0)
    chosen = plan.recommendation.strategy
    if seconds is not None:
        deadline = plan_for(plan, seconds, settings.messages_per_step)
        plan_page.show_deadline(deadline, settings, console, now)
        if deadline is None:
            return
        chosen = deadline.strategy
    if args.write_env:
        path = args.env_file or Path(".env")
        backup = write_env(path, chosen.env(settings.learning_rate))
        kept = f"; as it was: {backup}" if backup else ""
        console.print(f"written into {path}{kept}", markup=False)


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="PATH",
        help="exports to look at (default: the training data)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    add("--json-keys", action="store_true", help="list the keys of the JSON and what they mean")
    add("--account", type=Path, metavar="FILE",
        help="what prepare_training_data.py --json wrote: shows what cleaning dropped")  # fmt: skip
    add("--timezone", default="UTC", metavar="ZONE",
        help="zone of hours and weekdays, such as Europe/Berlin (default: UTC)")  # fmt: skip
    add(
        "--no-tokens", action="store_true", help="do not count tokens, which takes most of the time"
    )
    add("--explain", action="append", default=[], metavar="ID",
        help="show how a message's quality score comes about; may be given again")  # fmt: skip
    add("--show-sample", type=int, metavar="N",
        help="print what becomes of the data in training, and N examples, trained tokens "
        "marked")  # fmt: skip
    plan = parser.add_argument_group("the plan of the night")
    add = plan.add_argument
    add("--no-plan", action="store_true", help="the report alone")
    add("--calibrate", action="store_true",
        help="time about twenty real micro-batches here, so that the plan is right")  # fmt: skip
    add("--gpu", default="", metavar="NAME",
        help="plan for this card instead of this machine, such as 'RTX 2080 Ti'")  # fmt: skip
    add("--seconds-per-step", type=float, metavar="S",
        help="times of another trainer that needs S seconds a step")  # fmt: skip
    add("--ready-by", metavar="HH:MM", help="what ends by then")
    add("--hours", type=float, metavar="H", help="what ends within so many hours")
    add("--write-env", action="store_true",
        help="put the recommended lines into .env; the old one is kept as .env.backup")  # fmt: skip
    add_setting_options(parser, SETTINGS)
    return parser


@contextmanager
def training_data(
    args: argparse.Namespace, settings: Settings, console: Console
) -> Iterator[tuple[Path, "Preparation | None"]]:
    """The file to look at; of exports one that is prepared with the usual cleaning and deleted."""
    from discord_lora.analysis import report_files

    if not args.paths:
        account = report_files.read_account(args.account) if args.account else None
        yield settings.training_data_path, account
        return
    if args.account:
        raise UserError("--account: exports have an account of their own; leave it out.")
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        yield report_files.prepare_aside(tuple(args.paths), Path(folder), console)


def token_counter(settings: Settings, console: Console) -> "CountTokens | None":
    """None, and a line that says why, when the model has no tokenizer within reach."""
    from discord_lora.analysis import token_counts
    from discord_lora.model_location import locate_base_model

    location = locate_base_model(settings.base_model, plainly(console))
    try:
        return token_counts.token_counter(location)
    except UserError as error:
        console.print(f"tokens are not counted. {error}", style="yellow", markup=False)
        return None


if __name__ == "__main__":
    run_script(main)
