"""Put the adapter into Discord, as a member of your server.

Wants DISCORD_TOKEN in .env; README.md, "Into Discord", says where to get it. Ctrl+C lets the
running answers end and leaves.
"""

import asyncio
import gc
from collections.abc import Callable

from discord_lora.console import make_console, plainly, run_script
from discord_lora.script_options import add_setting_options, parse_with_settings, script_parser
from discord_lora.settings import Settings

EXAMPLES = """\
  python src/bot.py --dry-run          check everything but connecting
  python src/bot.py                    the newest adapter below adapters/
  python src/bot.py --adapter ada-sample --reply-style stream
"""


def main() -> int | None:
    parser = script_parser(__doc__.split("\n", maxsplit=1)[0], EXAMPLES)
    parser.add_argument("--adapter", metavar="NAME", help="folder below adapters/, or a path")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the invite link, and end"
    )
    add_setting_options(parser)
    args, settings = parse_with_settings(parser)

    from discord_lora.discord_bot.start_up import bot_log, required_token

    required_token(settings)
    say = plainly(make_console())
    with bot_log(settings, say):
        asyncio.run(be_in_discord(settings, args.adapter, say, dry_run=args.dry_run))
    return None


async def be_in_discord(
    settings: Settings, adapter: str | None, say: Callable[[str], None], *, dry_run: bool
) -> None:
    """Check what Discord says, load the model, and stay until stopped."""
    from discord_lora.discord_bot.start_up import ask_discord, required_token, stay_until_stopped
    from discord_lora.messages.opt_out import OptOutLedger

    ledger = OptOutLedger(settings.opt_out_file)
    account = await ask_discord(settings)
    say(f"{account.name} can be invited with\n{account.invite_link}")

    from discord_lora.adapter_folder import find_adapter
    from discord_lora.discord_bot.client import BotClient
    from discord_lora.inference.open_backend import open_backend

    folder = find_adapter(settings.output_dir, adapter)
    say(f"loading {folder}")
    backend = await open_backend(settings, folder, say)
    try:
        if dry_run:
            say(f"Everything is ready to speak as {backend.voice.name}; nothing was connected.")
            return
        # What is loaded stays: looking through it for garbage stops everything for a third of a
        # second, and Python would do it now and then.
        gc.collect()
        gc.freeze()
        client = BotClient(settings=settings, backend=backend, ledger=ledger, adapter=folder)
        say(f"speaking as {backend.voice.name}; Ctrl+C to leave")
        await stay_until_stopped(client, required_token(settings))
    finally:
        await backend.close()


if __name__ == "__main__":
    run_script(main)
