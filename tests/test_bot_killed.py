"""The bot's process is killed in the middle of everything, and started again.

With SIGKILL (on Windows TerminateProcess), so that it can neither finish nor tell anybody. What
the channel shows afterwards is all that the next life knows.
"""

import signal
import time
from contextlib import contextmanager

import pytest

from fakes import make_model, make_tokenizer, recites_the_alphabet
from loopback import LOADING_SECONDS, ended, train_tiny_adapter

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class Home:
    """A server with two channels; every question is asked by somebody new."""

    def __init__(self, server, launch, output_dir):
        self.server, self.launch, self.output_dir = server, launch, output_dir
        self.account = server.add_bot("Lora")
        guild = server.add_guild("Home")
        self.channel, self.other = guild.add_channel("general"), guild.add_channel("other")
        self.questions = []

    def ask(self, channel=None):
        name = f"member{len(self.questions)}"
        asking = self.server.add_user(name)
        question = (channel or self.channel).say(asking, f"ada, {name} asks you")
        self.questions.append(question)
        return question

    def answers(self, question):
        return [it for it in question.channel.by(self.account) if it.reply_to is question]

    def answered(self, question):
        return question.channel.wait_for_message(
            author=self.account, reply_to=question, timeout=LOADING_SECONDS
        )

    def start(self, style):
        return self.launch(
            token=self.account.token, OUTPUT_DIR=str(self.output_dir),
            REPLY_STYLE=style, MAX_REPLY_TOKENS="90",
        )  # fmt: skip

    @contextmanager
    def life(self, style):
        """A life of the process; it ends at once with the block."""
        process = self.start(style)
        self.server.wait_until_connected(self.account, timeout=LOADING_SECONDS)
        yield
        self.kill(process)

    def kill(self, process):
        assert process.poll() is None
        process.kill()
        process.wait()
        self.server.wait_until_gone(self.account)
        self.ask(self.other)  # while nobody is there

    def wait_for_request(self, method, path):
        """One that comes from now on."""
        before = len(self.server.requests(method, path))
        self.server.wait_until(
            lambda: len(self.server.requests(method, path)) > before, LOADING_SECONDS, path
        )


@pytest.mark.slow
def test_killed_at_every_phase_it_loses_and_doubles_nothing(server, launch, tmp_path):
    model = recites_the_alphabet(make_model(), make_tokenizer())
    home = Home(server, launch, train_tiny_adapter(tmp_path, model))
    messages = "/channels/*/messages"

    with home.life("person"):
        typed_for = home.ask()
        home.channel.wait_for_typing(home.account)
    assert home.answers(typed_for) == []  # it was killed while typing

    with home.life("stream"):
        home.answered(typed_for)
        streamed = home.ask()
        home.answered(streamed)
    (beginning,) = home.answers(streamed)
    assert len(beginning.content) < len(f"{ALPHABET}\n{ALPHABET}")  # in the middle of the stream

    with home.life("person"):
        in_two = home.ask()
        first_line = home.answered(in_two)
    assert first_line.content == ALPHABET
    assert home.channel.by(home.account)[-1] is first_line  # between two messages of an answer

    process = home.start("plain")
    home.wait_for_request("GET", "/gateway")
    home.kill(process)  # while loading the model

    server.fail_next("GET", messages, delay=1.0, times=100)
    with home.life("plain"):
        home.wait_for_request("GET", messages)  # while reading what it missed
    server.wire.faults.queue.clear()

    server.fail_next("POST", messages, delay=0.5)
    with home.life("plain"):
        home.wait_for_request("POST", messages)  # Discord has the answer, and it does not know

    process = home.start("plain")
    for question in home.questions:
        home.answered(question)
    time.sleep(3)
    for question in home.questions:
        assert len(home.answers(question)) == 1, question
    assert first_line in home.channel.messages and first_line.content == ALPHABET
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
