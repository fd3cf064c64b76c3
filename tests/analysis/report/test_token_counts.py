"""Without a tokenizer within reach the report goes on, and says what it lacks."""

import huggingface_hub
import pytest
from huggingface_hub.errors import HTTPError

from discord_lora.analysis.report import token_counts
from discord_lora.console import UserError, make_console


def failing(error):
    def fail(*_arguments):
        raise error

    return fail


@pytest.mark.parametrize("error", [HTTPError("no connection"), OSError("no connection")])
def test_a_tokenizer_that_cannot_be_fetched_is_said(error, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing(error))
    assert token_counts.find_token_counter("some/model", make_console()) is None
    assert "tokens are not counted. BASE_MODEL: the tokenizer of" in capsys.readouterr().out


def test_a_sample_model_that_cannot_be_fetched_is_said(monkeypatch, capsys):
    monkeypatch.setattr(token_counts, "locate_base_model", failing(UserError("no network")))
    assert token_counts.find_token_counter("sample", make_console()) is None
    assert "tokens are not counted. no network" in capsys.readouterr().out
