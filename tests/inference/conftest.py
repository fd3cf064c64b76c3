import pytest

from discord_lora.conversations.prompt_format import persona_voice
from discord_lora.inference.local_backend import Limits, LocalBackend
from fakes import make_model, make_tokenizer


@pytest.fixture
def make_backend():
    """Makes backends of a tiny model; they are closed after the test."""
    made = []

    def make(voice=None, model=None, *, tokens=400, running=8, waiting=32, **options):
        backend = LocalBackend(
            model or make_model(),
            make_tokenizer(),
            voice or persona_voice("Ada", "id-Ada"),
            max_prompt_tokens=tokens,
            limits=Limits(running, waiting),
            **options,
        )
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close_now()
