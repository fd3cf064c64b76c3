"""Fixtures: a Discord on the loopback interface, and `python src/bot.py` on it, with a tiny model.

Every test has them, so nothing heavy is imported before it is asked for.
"""

import asyncio
from types import SimpleNamespace

import pytest

LOADING_SECONDS = 60
SCRIPT = "src/bot.py"


@pytest.fixture
def server(monkeypatch):
    """discord.py in this process talks to it; the bot's own process is told by a setting."""
    import discord
    import yarl

    from fake_discord import FakeDiscord

    with FakeDiscord() as server:
        monkeypatch.setattr(discord.http.Route, "BASE", server.api_base)
        gateway = yarl.URL(server.gateway_url)
        monkeypatch.setattr(discord.gateway.DiscordWebSocket, "DEFAULT_GATEWAY", gateway)
        yield server


@pytest.fixture
def quick_retries(monkeypatch):
    """discord.py in this process does not wait long before it tries again.

    It pauses for 1, 3, 5 and 7 s after a server's error; what a rate limit asks for comes as a
    fraction and is waited out. A lost connection is followed by up to 2, 4, 8 s.
    """
    import discord

    async def sleep(seconds):
        await asyncio.sleep(seconds / 100 if isinstance(seconds, int) else seconds)

    hurried = SimpleNamespace(**vars(asyncio))
    hurried.sleep = sleep
    monkeypatch.setattr(discord.http, "asyncio", hurried)
    backoff = discord.backoff.ExponentialBackoff
    monkeypatch.setattr(discord.client, "ExponentialBackoff", lambda: backoff(0.05))


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """OUTPUT_DIR with one finished adapter of a tiny model."""
    return train_tiny_adapter(tmp_path_factory.mktemp("bot"))


def train_tiny_adapter(folder, model=None):
    """OUTPUT_DIR below `folder` with an adapter of Ada's, a step long; it answers in letters."""
    from fakes import make_model, make_tokenizer, says_letters
    from run_scripts import run_here, tiny_model_folder, write_chat

    model = model or says_letters(make_model(), make_tokenizer())
    words = [
        *("--training-data-path", write_chat(folder / "chat.jsonl")),
        *("--base-model", tiny_model_folder(folder, model)),
        *("--output-dir", folder / "adapters", "--logs-dir", folder / "logs"),
        *("--persona", "ada", "--quantization", "none", "--max-steps", "1"),
        *("--max-validation-messages", "4"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, "training/train_lora.py", *words) == 0
    return folder / "adapters"


@pytest.fixture
def launch(request, server, tmp_path):
    """Start the script; whatever still runs afterwards is ended."""
    from run_scripts import start

    started = []

    def launch(*words, token, script=(SCRIPT,), **settings):
        if "OUTPUT_DIR" not in settings:
            settings["OUTPUT_DIR"] = str(request.getfixturevalue("adapters"))
        environment = {
            "DISCORD_TOKEN": token,
            "DISCORD_API_BASE": server.api_base,
            "LOGS_DIR": str(tmp_path / "logs"),
            "OPT_OUT_FILE": str(tmp_path / "opted_out.json"),
            "REPLY_STYLE": "plain",
            "MAX_REPLY_TOKENS": "8",
            **settings,
        }
        started.append(start(*script, *words, **environment))
        return started[-1]

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process):
    """Exit code and output of a process that was told to end."""
    out, error = process.communicate(timeout=LOADING_SECONDS)
    return process.returncode, out.decode(), error.decode()
