"""What several processes agree on; the runs of several are in test_several_processes.py."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from discord_lora.console import UserError
from discord_lora.finetuning import processes
from discord_lora.finetuning.training_state import optimizer_name
from discord_lora.settings import Settings


def accelerator(kind, version=2):
    plugin = SimpleNamespace(mixed_precision_policy=None)
    return SimpleNamespace(
        distributed_type=kind, is_fsdp2=version == 2, state=SimpleNamespace(fsdp_plugin=plugin)
    )


def settings(**chosen):
    return Settings(**{"quantization": "none", **chosen})


def test_4_bit_weights_are_not_sharded():
    with pytest.raises(UserError, match="set QUANTIZATION=none"):
        processes.prepare_sharding(
            accelerator(DistributedType.FSDP), settings(quantization="nf4"), torch.float32
        )


def test_the_older_fsdp_is_refused():
    with pytest.raises(UserError, match="fsdp_version: 2"):
        processes.prepare_sharding(
            accelerator(DistributedType.FSDP, version=1), settings(), torch.float32
        )


def test_sharding_without_cards_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "is_fsdp_enabled", lambda: True)
    with pytest.raises(UserError, match="CUDA cards"):
        processes.prepare_sharding(
            accelerator(DistributedType.MULTI_CPU), settings(), torch.float32
        )


def test_losses_and_sums_of_gradients_are_not_rounded_to_16_bits():
    sharded = accelerator(DistributedType.FSDP)
    processes.prepare_sharding(sharded, settings(), torch.bfloat16)
    policy = sharded.state.fsdp_plugin.mixed_precision_policy
    assert policy.param_dtype == torch.bfloat16
    assert policy.reduce_dtype == torch.float32
    assert policy.output_dtype is None


def test_sharded_weights_have_an_optimizer_that_can_be_sharded():
    assert optimizer_name(settings(), on_cuda=True, sharded=False) == "paged_adamw_8bit"
    assert optimizer_name(settings(), on_cuda=True, sharded=True) == "adamw"
    with pytest.raises(UserError, match="OPTIMIZER: adamw_8bit cannot be sharded"):
        optimizer_name(settings(optimizer="adamw_8bit"), on_cuda=True, sharded=True)
