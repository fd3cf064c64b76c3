"""`python src/bot.py` as a process of its own, on the loopback Discord, with a tiny adapter."""

import re
import signal

import pytest

from discord_lora.discord_bot.start_up import PERMISSIONS, PORTAL
from fake_discord import FakeDiscord, Intents
from run_scripts import run_here, start, tiny_model_folder, write_chat

SCRIPT = "src/bot.py"
LOADING_SECONDS = 60
COMMANDS = {
    "status", "persona", "reset", "optout", "optin", "quiet", "wake", "settings", "why", "reload",
    "Regenerate", "Delete",
}  # fmt: skip


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """OUTPUT_DIR with one finished adapter of a tiny model."""
    folder = tmp_path_factory.mktemp("bot")
    words = [
        *("--training-data-path", write_chat(folder / "chat.jsonl")),
        *("--base-model", tiny_model_folder(folder)),
        *("--output-dir", folder / "adapters", "--logs-dir", folder / "logs"),
        *("--persona", "ada", "--quantization", "none", "--max-steps", "1"),
        *("--max-validation-messages", "4"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, "training/train_lora.py", *words) == 0
    return folder / "adapters"


@pytest.fixture
def server():
    with FakeDiscord() as server:
        yield server


@pytest.fixture
def launch(server, adapters, tmp_path):
    """Start the script; whatever still runs afterwards is ended."""
    started = []

    def launch(*words, token, **settings):
        environment = {
            "DISCORD_TOKEN": token,
            "DISCORD_API_BASE": server.api_base,
            "OUTPUT_DIR": str(adapters),
            "LOGS_DIR": str(tmp_path / "logs"),
            "OPT_OUT_FILE": str(tmp_path / "opted_out.json"),
            "REPLY_STYLE": "plain",
            "MAX_REPLY_TOKENS": "8",
            **settings,
        }
        started.append(start(SCRIPT, *words, **environment))
        return started[-1]

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process):
    out, error = process.communicate(timeout=LOADING_SECONDS)
    return process.returncode, out.decode(), error.decode()


def test_without_a_usable_token_one_sentence_says_where_to_click(server, launch, tmp_path):
    account = server.add_bot("Lora", privileged=Intents(0))
    for token, words in (
        ("", "DISCORD_TOKEN is empty"),
        ("no.such.token", "Discord refuses DISCORD_TOKEN"),
        (account.token, "switch on Message Content Intent"),
    ):
        code, _, error = ended(launch(token=token))
        assert code == 2 and words in error.replace("\n", " ") and PORTAL in error
        assert "Traceback" not in error and error.count("error:") == 1
        assert not token or token not in error
    assert server.gateway.connections == []


def test_a_dry_run_checks_everything_and_connects_to_nothing(server, launch):
    account = server.add_bot("Lora")
    code, out, error = ended(launch("--dry-run", token=account.token))
    assert (code, error) == (0, "")
    link = re.search(r"https://discord\.com/oauth2/authorize\S+", out)[0]
    assert f"client_id={account.id}" in link and f"permissions={PERMISSIONS.value}" in link
    assert "Everything is ready to speak as Ada" in out
    assert server.gateway.connections == []


def test_it_lives_in_discord_and_leaves_with_a_goodbye(server, launch, tmp_path):
    owner, alice = server.add_user("olga"), server.add_user("alice")
    account = server.add_bot("Lora", owner=owner)
    guild = server.add_guild("Home")
    channel = guild.add_channel("general")
    missed = channel.say(alice, "anybody? ada?")
    process = launch(token=account.token)
    server.wait_until_connected(account, timeout=LOADING_SECONDS)
    mention = channel.say(alice, "hello @Lora", mentions=[account])
    answer = channel.wait_for_message(author=account, reply_to=mention)
    reply = channel.say(alice, "why?", reply_to=answer)
    channel.wait_for_message(author=account, reply_to=reply)
    direct = server.open_dm(alice, account)
    direct.wait_for_message(author=account, reply_to=direct.say(alice, "hi"))
    thread = channel.start_thread(account, "tea")
    thread.wait_for_message(author=account, reply_to=thread.say(alice, "green?"))
    assert {it["name"] for it in account.commands[None]} == COMMANDS
    for name in ("status", "why"):
        it = server.use_command(owner, channel, name)
        it.wait_for_response()
        assert it.is_ephemeral and account.token not in it.wait_for_answer().content
    assert channel.by(account)[0].reply_to in (missed, mention)
    process.send_signal(signal.SIGINT)
    code, out, error = ended(process)
    assert code == 130 and "Said goodbye to Discord." in error
    assert server.gateway.closes[-1][1] == 1000
    log = (tmp_path / "logs" / "bot.log").read_text(encoding="utf-8")
    assert "answered" in log
    assert account.token not in log + out + error
    assert "hello" not in log  # what members write is no matter of the log
