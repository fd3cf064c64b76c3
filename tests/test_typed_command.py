"""The command that a run prints is one that a shell takes apart into the same words."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from discord_lora.typed_command import quoted, typed_command, without_secrets

PROGRAM = "from discord_lora.typed_command import typed_command; print(typed_command())"


def run(*command, cwd, program=PROGRAM, **options):
    (cwd / "a script.py").write_text(program, encoding="utf-8")
    out = subprocess.check_output([*map(str, command)], cwd=cwd, text=True, **options)
    return out.strip()


def test_a_program_knows_how_it_was_called(tmp_path):
    words = ["a script.py", "--persona", "Ada's", "--system-prompt", "$HOME", "--max-steps=5"]
    line = run(sys.executable, "-X", "utf8", *words, cwd=tmp_path)
    assert shlex.split(line) == [sys.executable, "-X", "utf8", *words]


def test_the_short_name_is_kept_where_it_means_this_python(tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path}
    assert run("python", "a script.py", cwd=tmp_path, env=env) == "python 'a script.py'"


def test_beginning_anew_is_no_part_of_going_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training/train_lora.py", "--fresh", "--epochs", "2"])
    assert typed_command().endswith("training/train_lora.py --epochs 2")


def test_what_a_launcher_was_given_is_what_was_typed(tmp_path):
    """As `accelerate launch` does it: a Python that starts another with its own last words."""
    launcher = tmp_path / "launch.py"
    launcher.write_text(
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"
    )
    line = run(sys.executable, "launch.py", "a script.py", "--epochs", "2", cwd=tmp_path)
    assert shlex.split(line) == [sys.executable, "launch.py", "a script.py", "--epochs", "2"]


def test_secrets_are_struck_out():
    words = ["x.py", "--hf-token", "hf_123", "--discord-token=abc", "--persona", "hf_123"]
    struck = ["x.py", "--hf-token", "[secret]", "--discord-token=[secret]", "--persona", "hf_123"]
    assert without_secrets(words) == struck
    assert without_secrets(["sudo", "HF_TOKEN=hf_123", "python"]) == [
        *("sudo", "HF_TOKEN=[secret]", "python")
    ]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("training\\train_lora.py", "training\\train_lora.py"),
        ("calm heron", '"calm heron"'),
        ("a,b", '"a,b"'),
        ("", '""'),
        ("C:\\my chats\\", '"C:\\my chats\\\\"'),
        ("it's", '"it\'s"'),
        ("$env:x", "'$env:x'"),
        ("100% `Ada's`", "'100% `Ada''s`'"),
        ("a & b; c", '"a & b; c"'),
    ],
)
def test_words_are_quoted_for_powershell(word, line):
    assert quoted(["python", word], windows=True) == f"python {line}"


def test_a_quoted_program_is_called_in_powershell():
    line = quoted(["C:\\my python\\python.exe", "x.py"], windows=True)
    assert line == '& "C:\\my python\\python.exe" x.py'


def test_what_windows_passes_on_is_taken_apart_into_the_same_words():
    """subprocess.list2cmdline is how a Windows program's line is taken apart, the other way round;
    outside of what PowerShell expands, both write the same."""
    for word in ["a b", "C:\\x y\\", "a b\\\\c"]:
        assert quoted(["p", word], windows=True) == subprocess.list2cmdline(["p", word])
