"""The command line of a script: its own options, and one for each setting that it reads."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr

from discord_lora.console import UserError
from discord_lora.settings import Settings, load_settings


def script_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose `--help` teaches by example and that guesses at no abbreviation."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_setting_options(
    parser: argparse.ArgumentParser, names: Sequence[str] | None = None
) -> None:
    """Give a script one `--option` a setting (all, or only those named), with help from it."""
    parser.add_argument(
        "--env-file", type=Path, metavar="FILE", help="read settings from FILE instead of .env"
    )
    group = parser.add_argument_group(
        "settings", "Each overrides the setting of the same name in .env and the environment."
    )
    for name in names or Settings.model_fields:
        field = Settings.model_fields[name]
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"{field.description} (default: {_shown_default(field.default)})".replace(
                "%", "%%"
            ),
        )


def _shown_default(value: object) -> str:
    if isinstance(value, SecretStr) or value is None or value == "":
        return "none"
    if isinstance(value, Path):
        return value.as_posix()
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_with_settings(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, Settings]:
    """Parse a script's own options and the settings together.

    Raises:
        UserError: unknown options, with the nearest known one, and all settings problems.
    """
    args, unknown = parser.parse_known_args(argv)
    known = [option for action in parser._actions for option in action.option_strings]
    problems = [_unknown_option(option, known) for option in unknown if option.startswith("-")]
    if unknown and not problems:
        problems = [f"unexpected argument {unknown[0]}; see --help."]
    given = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    try:
        settings = load_settings(given, _env_file(args))
    except UserError as error:
        raise UserError(*problems, *error.problems) from None
    if problems:
        raise UserError(*problems)
    return args, settings


def _env_file(args: argparse.Namespace) -> Path:
    chosen: Path | None = getattr(args, "env_file", None)
    if chosen is not None and not chosen.is_file():
        raise UserError(f"--env-file: there is no file {chosen}; copy .env.example to it.")
    return chosen or Path(".env")


def _unknown_option(option: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(option.partition("=")[0], known, n=1, cutoff=0.6)
    return f"{option}: unknown option; " + (f"did you mean {near[0]}?" if near else "see --help.")
