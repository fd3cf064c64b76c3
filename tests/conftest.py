"""What every test gets."""

import os
import signal

# Read when huggingface_hub is imported: no test may ask the network for a model.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from discord_lora import hardware

pytest_plugins = ["loopback"]

# A shell that starts the tests in the background lets them ignore Ctrl+C, and so would every
# process that they start to be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The models of the fast tests are so small that threads cost more than they bring.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _measured_in_a_moment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run measures the processor for half a second; here only `alone` looks at the figure."""
    if request.node.get_closest_marker("alone") is None:
        monkeypatch.setattr(hardware, "GEMM_TIMES", 1)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches a test."""
    from discord_lora.settings import Settings

    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
