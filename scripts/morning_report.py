"""What happened in the night: losses, times, incidents, sample answers, and the next command.

Reads logs/<run>/history.jsonl, which training writes, prints a page and writes
logs/<run>/report.html anew, whatever state the run is in: running, finished, or ended by a power
cut. Nothing else is changed, and training is not disturbed.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from discord_lora.console import UserError, make_console, run_script
from discord_lora.script_options import add_setting_options, parse_with_settings, script_parser

if TYPE_CHECKING:
    from discord_lora.analysis.morning.morning_report import MorningReport

EXAMPLES = """\
  python scripts/morning_report.py                      the newest run
  python scripts/morning_report.py calm.heron-sample    another one below logs/
  python scripts/morning_report.py --html report.html   the page for a browser somewhere else"""


def main() -> int | None:
    parser = script_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("run", nargs="?", metavar="RUN",
                        help="name below LOGS_DIR, or a folder (default: the newest)")  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE",
                        help="where to write the page (default: in the run's folder)")  # fmt: skip
    add_setting_options(parser, ("logs_dir",))
    args, settings = parse_with_settings(parser)

    from discord_lora.analysis.morning.history import HISTORY_FILE
    from discord_lora.analysis.morning.morning_html import REPORT_FILE, as_html
    from discord_lora.analysis.morning.morning_page import print_page
    from discord_lora.messages.output import refuse_overwriting, write_whole

    folder = find_run(settings.logs_dir, args.run)
    path = args.html or folder / REPORT_FILE
    refuse_overwriting({"--html": path}, [folder / HISTORY_FILE])
    report = report_on(folder)
    console = make_console()
    print_page(console, report)
    write_whole(path, as_html(report), "--html")
    console.print(f"\nwritten: {path}", markup=False)
    return None


def find_run(logs_dir: Path, name: str | None) -> Path:
    """The run's folder of logs. Raises UserError if there is none, or none of that name."""
    from discord_lora.analysis.morning.history import runs

    known = runs(logs_dir)
    if name is None:
        if not known:
            raise UserError(
                f"There is no run below {logs_dir} yet; python training/train_lora.py starts one."
            )
        return known[0]
    path = Path(name)
    for folder in (path.parent if path.is_file() else path, logs_dir / name):
        if folder.is_dir():
            return folder
    names = ", ".join(folder.name for folder in known[:5]) or "none"
    raise UserError(f"There is no run {name} below {logs_dir}; the newest are: {names}.")


def report_on(folder: Path) -> "MorningReport":
    """Raises UserError if that folder holds no history, or none that can be read."""
    from discord_lora.analysis.morning.morning_report import read_report

    report = read_report(folder)
    if report is None:
        raise UserError(
            f"{folder} holds no history of a run that can be read; name another run, or train."
        )
    return report


if __name__ == "__main__":
    run_script(main)
