"""Choose what to learn from: the best messages, some people or channels, a time, or by hand.

A message is learned from when everything that is asked for holds; --best comes last, among those
that the rest leaves. All others are marked "train": false: the model still reads them as context
and never imitates them. The training data stay as they are: the result is a file beside them.

A large set that is filtered already is best used whole: filtering it again loses conversation.
"""

import argparse
from pathlib import Path

from discord_lora.console import UserError, make_console, run_script
from discord_lora.script_options import add_setting_options, parse_with_settings, script_parser

EXAMPLES = """\
  python scripts/filter_training_data.py --best 10000             the best 10,000
  python scripts/filter_training_data.py --min-quality 30 --drop-near-duplicates --dry-run
                                                    only show what that would come to
  python scripts/filter_training_data.py --authors "Ada, bob" --channels general --until 2024-05-01
  python scripts/filter_training_data.py --without-channels memes --in-place
  python scripts/filter_training_data.py --hand-pick 3000         a CSV to tick off in a spreadsheet
  python scripts/filter_training_data.py --picked data/training_data.hand_pick.csv
                                                    what was ticked

--hand-pick N takes the N best of the messages that the rest leaves, and lists them by conversation.
analyze_training_data.py --explain ID shows how a quality score comes about."""

ASKED = (
    "authors", "without_authors", "channels", "without_channels", "since", "until", "timezone",
    "drop_near_duplicates", "drop_private", "min_quality", "best",
)  # fmt: skip


def main() -> int | None:
    args, settings = parse_with_settings(make_parser())
    check(args)
    from discord_lora.analysis.filtering import choose, filter_files, filter_page, hand_pick
    from discord_lora.analysis.report import report_files
    from discord_lora.analysis.report.activity import check_timezone
    from discord_lora.analysis.report.measure import Options, make_report, measure
    from discord_lora.messages.opt_out import OPTED_OUT
    from discord_lora.messages.report import what_next

    check_timezone(args.timezone)
    console = make_console()
    path = args.path or settings.training_data_path
    ending = ".hand_pick.csv" if args.hand_pick else ".filtered.jsonl"
    out = None if args.in_place else filter_files.place_for(path, args.out, ending)
    columns = report_files.read_with_progress(path, console, settings.opt_out_file)
    filter_files.refuse_ready(columns, path)
    for remark in columns.account.remarks():
        console.print(remark, markup=False)
    options = Options(settings.conversation_gap_minutes, args.timezone)
    with console.status("measuring", spinner="line"):
        measures = measure(columns, options)
        report = make_report(columns, measures, options)
    wanted = {name: getattr(args, name) for name in ASKED}
    if args.picked:
        wanted["picked"] = hand_pick.read_ticks(args.picked, columns.frame["id"])
        wanted["opted_out"] = columns.account.dropped[OPTED_OUT]
    choice = choose.choose(measures, choose.Criteria(**wanted))
    before = choose.summarise(measures, columns.frame["train"].to_numpy())
    after = choose.summarise(measures, choice.chosen)
    if args.dry_run or not args.hand_pick:
        filter_page.print_choice(console, before, after, choice, remove=args.remove)
    filter_page.warn(console, report.findings)
    if not after.learned:
        raise UserError("Nothing is left to learn from, so nothing is written; ask for less.")
    if args.dry_run:
        console.print("nothing is written (--dry-run)")
    elif args.hand_pick and out:
        candidates = choose.best_of(measures, choice.chosen, args.hand_pick)
        hand_pick.write_csv(measures, candidates, args.timezone, out)
        filter_page.print_hand_pick(console, path, out, int(candidates.sum()), after.learned)
    else:
        with console.status("writing", spinner="line"):
            backup = filter_files.write_filtered(
                columns, choice.chosen, path, out, remove=args.remove
            )
        kept = f" (as it was: {backup})" if backup else ""
        console.print(f"written to {out or path}{kept}", markup=False)
        console.print(what_next(out or path), markup=False)
    return None


def check(args: argparse.Namespace) -> None:
    """Raise UserError for options that ask for nothing, or for two things at once."""
    problems = []
    choosing = {"picked", "hand_pick", *ASKED} - {"timezone"}
    if not any(getattr(args, name) not in (None, [], False) for name in choosing):
        problems.append("Say what to keep, such as --best 10000; --help lists what there is.")
    for name in ("best", "hand_pick"):
        count = getattr(args, name)
        if count is not None and count < 1:
            problems.append(f"--{name.replace('_', '-')}: must be 1 or more.")
    if args.in_place and args.out:
        problems.append("--in-place and --out FILE exclude each other; leave one out.")
    if args.hand_pick and (args.picked or args.in_place or args.remove):
        problems.append("--hand-pick only writes the CSV; give the others later, with --picked.")
    if args.out and args.out == args.picked:
        problems.append("--out: names the CSV of --picked; choose another file.")
    if problems:
        raise UserError(*problems)


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("path", nargs="?", type=Path, metavar="FILE",
                        help="what to filter (default: the training data)")  # fmt: skip
    add = parser.add_argument_group("what to learn from").add_argument
    add("--best", type=int, metavar="N", help="the N messages with the highest quality score")
    add("--min-quality", type=float, metavar="X", help="a quality score of X or more (0 to 100)")
    add("--drop-near-duplicates", action="store_true",
        help="of texts of six words or more that say nearly the same only the first")  # fmt: skip
    add("--drop-private", action="store_true",
        help="none that seems to hold an e-mail address, a number or a key")  # fmt: skip
    who = "names, user names or ids, with commas between them; may be given again"
    add("--authors", action="append", default=[], metavar="NAMES", help=f"only these: {who}")
    add("--without-authors", action="append", default=[], metavar="NAMES",
        help="everybody but these")  # fmt: skip
    add("--channels", action="append", default=[], metavar="NAMES",
        help="only these: names (with # or without) or ids, as above")  # fmt: skip
    add("--without-channels", action="append", default=[], metavar="NAMES",
        help="every channel but these")  # fmt: skip
    add("--since", metavar="DATE", help="from 2024-05-01, or 2024-05-01T18:30, on")
    add("--until", metavar="DATE", help="until then; a day is meant to its end. Messages without "
        "a time of their own are left out where either is given")  # fmt: skip
    add("--timezone", default="UTC", metavar="ZONE",
        help="zone of these dates, such as Europe/Berlin (default: UTC)")  # fmt: skip
    add("--hand-pick", type=int, metavar="N",
        help="write the N best of them as CSV with what was said before, to tick off")  # fmt: skip
    add("--picked", type=Path, metavar="CSV", help="only what is ticked in that CSV")
    add = parser.add_argument_group("what to write").add_argument
    add("--remove", action="store_true",
        help="drop the others for good, instead of keeping them as context")  # fmt: skip
    add("--out", type=Path, metavar="FILE",
        help="where to write (default: FILE.filtered.jsonl beside it; the CSV: "
        "FILE.hand_pick.csv)")  # fmt: skip
    add("--in-place", action="store_true", help="replace the training data, keeping a copy")
    add("--dry-run", action="store_true", help="only print before and after")
    add_setting_options(parser, ("training_data_path", "conversation_gap_minutes"))
    return parser


if __name__ == "__main__":
    run_script(main)
