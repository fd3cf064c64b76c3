"""See what is in the data before training: people, lengths, answers, quality, and what to do.

Reads data/training_data.jsonl, or straight the exports that are named. Nothing is changed, and of
the messages nothing is shown but what --explain or --show-sample ask for.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from discord_lora.analysis.plan.plan_options import Asked, add_plan_options
from discord_lora.console import UserError, make_console, run_script
from discord_lora.script_options import add_setting_options, parse_with_settings, script_parser
from discord_lora.settings import Settings

EXAMPLES = """\
  python scripts/analyze_training_data.py                         the whole report
  python scripts/analyze_training_data.py exports/                of exports, not yet prepared
  python scripts/analyze_training_data.py --html report.html      the same with charts, to look at
  python scripts/analyze_training_data.py --json report.json --timezone Europe/Berlin --no-tokens
  python scripts/analyze_training_data.py --explain 1419408018537316453
                                                     why a message has its quality score
  python scripts/analyze_training_data.py --show-sample 3         what is trained on
  python scripts/analyze_training_data.py --ready-by 07:00 --write-env
                                                     the night's plan, into .env
  python scripts/analyze_training_data.py --calibrate             and its times measured here

In a sample the trained tokens are green; where there is no colour they stand in >> <<.
Sections of the JSON: source, overview, authors, lengths, activity, channels, engagement, quality,
content, duplicates, languages, private_data, learned, findings; --json-keys lists every key."""

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
    from discord_lora.analysis.report import explain, measure, report_files, report_page
    from discord_lora.analysis.report.activity import check_timezone
    from discord_lora.analysis.report.token_counts import find_token_counter
    from discord_lora.messages.output import refuse_overwriting

    if args.json_keys:
        print(report_files.key_table())
        return None
    check_timezone(args.timezone)
    asked = Asked.of(args)
    reads = (settings.training_data_path, args.account, *args.paths)
    refuse_overwriting({"--json": args.json, "--html": args.html}, reads)
    console = make_console()
    source = report_files.training_data(
        tuple(args.paths), settings.training_data_path, args.account, console
    )
    with source as (path, preparation):
        settings = settings.model_copy(update={"training_data_path": path})
        columns = report_files.read_with_progress(path, console, settings.opt_out_file)
        options = measure.Options(
            settings.conversation_gap_minutes,
            args.timezone,
            settings.base_model,
            None if args.no_tokens else find_token_counter(settings.base_model, console),
            preparation,
            tuple(args.paths) or (path,),
            settings.max_seq_length,
        )
        with console.status("measuring", spinner="line"):
            measures = measure.measure(columns, options)
            report = measure.make_report(columns, measures, options)
        explanations = [explain.explain(measures, message_id) for message_id in args.explain]
        written = report_files.write_reports(report, args.json, args.html)
        report_page.print_page(console, report)
        explain.print_explanations(console, explanations)
        for file in written:
            console.print(f"written: {file}", markup=False)
        if args.show_sample is not None:
            from discord_lora.analysis.report.training_view import show_training_view

            show_training_view(settings, max(0, args.show_sample), console)
        if not (args.no_plan or args.no_tokens):
            filtered = any(finding.key == "filtered_already" for finding in report.findings)
            can_be_filtered = not (args.paths or report.source.ready_conversations)
            asked = replace(asked, looks_filtered=filtered, can_be_filtered=can_be_filtered)
            show_night(asked, settings, console)
    return None


def show_night(asked: Asked, settings: Settings, console: Console) -> None:
    """The plan; where nobody asked for it, what it lacks is no error."""
    from discord_lora.finetuning.forecast import plan_the_night

    try:
        plan_the_night(asked, settings, console)
    except UserError as error:
        if asked.outright:
            raise
        console.print("No plan of the night: " + " ".join(error.problems), markup=False)


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="PATH",
        help="exports to look at (default: the training data)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    add("--html", type=Path, metavar="FILE", help="write the report as a page to look at, too")
    add("--json-keys", action="store_true", help="list the keys of the JSON and what they mean")
    add("--account", type=Path, metavar="FILE",
        help="prepare_training_data.py's account, unless it lies beside the data")  # fmt: skip
    add("--timezone", default="UTC", metavar="ZONE",
        help="zone of days and hours, such as Europe/Berlin (default: UTC)")  # fmt: skip
    add(
        "--no-tokens", action="store_true", help="do not count tokens, which takes most of the time"
    )
    add("--explain", action="append", default=[], metavar="ID",
        help="show how a message's quality score comes about; may be given again")  # fmt: skip
    add("--show-sample", type=int, metavar="N",
        help="print what becomes of the data in training, and N examples, trained tokens "
        "marked")  # fmt: skip
    add_plan_options(parser)
    add_setting_options(parser, SETTINGS)
    return parser


if __name__ == "__main__":
    run_script(main)
