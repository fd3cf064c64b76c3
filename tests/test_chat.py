"""The chat script as people use it, with a tiny adapter."""

import io
import json

import pytest

from run_scripts import run_here, tiny_model_folder, write_chat

SCRIPT = "scripts/chat.py"


@pytest.fixture
def adapters(tmp_path, monkeypatch):
    """OUTPUT_DIR with one finished adapter of a tiny model."""
    words = [
        *("--training-data-path", write_chat(tmp_path / "chat.jsonl")),
        *("--base-model", tiny_model_folder(tmp_path)),
        *("--output-dir", tmp_path / "adapters"),
        *("--logs-dir", tmp_path / "logs"),
        *("--persona", "ada", "--quantization", "none", "--max-steps", "1"),
        *("--max-validation-messages", "4"),
    ]
    assert run_here(monkeypatch, "training/train_lora.py", *words) == 0
    return tmp_path / "adapters"


def chat(monkeypatch, adapters, *words):
    return run_here(
        monkeypatch, SCRIPT, "--output-dir", adapters, "--max-reply-tokens", "5", *words
    )


def test_one_answer_as_json(monkeypatch, adapters, capsys):
    capsys.readouterr()
    for words in (["--seed", "1"], ["--seed", "1", "--base"]):
        assert chat(monkeypatch, adapters, "--message", "hi", "--json", *words) == 0
        answer = json.loads(capsys.readouterr().out)
        assert set(answer) == {"reply", "voice", "adapter", "seconds"}
        assert answer["voice"] == "Ada"
        assert (answer["adapter"] is None) == ("--base" in words)


def test_a_conversation_with_its_commands(monkeypatch, adapters, capsys):
    lines = ["/retry", "hi", "/as Zed", "ho", "/retry", "/reset", "/nonsense", "", "/quit", "never"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    capsys.readouterr()
    assert chat(monkeypatch, adapters, "--seed", "1") == 0
    out = capsys.readouterr().out
    assert out.count("Ada: ") == 3
    assert "(nothing was said yet)" in out
    assert "Zed: " in out and "(forgotten)" in out and "(commands:" in out
    assert "never" not in out


def test_a_failed_answer_does_not_end_the_talk(monkeypatch, adapters, capsys):
    from discord_lora.inference.batch import Batch

    start, failures = Batch.start, [RuntimeError("no such kernel")]

    def fails_once(batch, answer):
        if failures:
            raise failures.pop()
        start(batch, answer)

    monkeypatch.setattr(Batch, "start", fails_once)
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\nagain\n"))
    capsys.readouterr()
    assert chat(monkeypatch, adapters) == 0
    out = capsys.readouterr().out
    assert out.count("Ada: ") == 2 and out.count("the answer failed: RuntimeError") == 1


def test_the_end_of_the_input_ends_the_conversation(monkeypatch, adapters, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert chat(monkeypatch, adapters) == 0


def test_no_adapter_is_said_with_the_next_step(monkeypatch, tmp_path, capsys):
    assert chat(monkeypatch, tmp_path) == 2
    error = capsys.readouterr().err
    assert "train_lora.py" in error and "Traceback" not in error


def test_a_planted_pickle_is_never_loaded(monkeypatch, adapters, capsys, tmp_path):
    """An adapter folder from somebody else cannot run code."""
    import torch

    class Malicious:
        def __reduce__(self):
            return ((tmp_path / "executed").touch, ())

    folder = adapters / "ada-tiny"
    torch.save({"x": Malicious()}, folder / "adapter_model.bin")
    assert chat(monkeypatch, adapters, "--message", "hi") == 0
    (folder / "adapter_model.safetensors").unlink()
    assert chat(monkeypatch, adapters, "--message", "hi", "--adapter", "ada-tiny") == 2
    assert not (tmp_path / "executed").exists()
