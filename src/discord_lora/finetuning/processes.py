"""Several processes of one run: what they agree on, and weights of which each holds a share.

Under DDP each process has the whole model. Under FSDP (training/fsdp.yaml) each has a share of
every weight, accelerate and torch gather a layer's weights while it is computed, and what is saved
is gathered first: checkpoints and adapters are the same files whatever the processes.
"""

from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations.fsdp import is_fsdp_enabled

from discord_lora.console import UserError
from discord_lora.settings import Settings


def join_processes() -> PartialState:
    """The processes that `accelerate launch` started, or the only one there is."""
    return PartialState(cpu=not torch.cuda.is_available())


def anywhere(accelerator: Accelerator, flag: bool) -> bool:
    """True if the flag is up in any process: all of them have to leave the loop together."""
    return smallest(accelerator, int(not flag)) == 0


def smallest(accelerator: Accelerator, number: int) -> int:
    """The smallest of the numbers that the processes bring; all of them have to ask."""
    if accelerator.num_processes == 1:
        return number
    numbers = accelerator.gather(torch.tensor([number], device=accelerator.device))
    return int(numbers.min())


def keep_others_waiting(accelerator: Accelerator) -> None:
    """What the main process calls now and then in long work that the others wait for.

    What processes wait for together ends in an error when nothing happens for minutes.
    """
    anywhere(accelerator, True)


def wait_for_main_process(accelerator: Accelerator) -> None:
    """Go on when the main process is here, too."""
    while anywhere(accelerator, False):
        pass


def is_sharded(accelerator: Accelerator) -> bool:
    """True if each process holds a share of the weights only."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def prepare_sharding(accelerator: Accelerator, settings: Settings, dtype: torch.dtype) -> None:
    """Refuse what cannot be sharded, and set the number formats of what is.

    Raises:
        UserError: a computer without cards, 4-bit weights, or the older kind of FSDP.
    """
    if not is_sharded(accelerator):
        if is_fsdp_enabled():
            raise UserError("FSDP shards a model over CUDA cards, and there are none here.")
        return
    if settings.quantization != "none":
        raise UserError(
            f"QUANTIZATION: {settings.quantization} weights cannot be sharded (FSDP); set "
            "QUANTIZATION=none."
        )
    if not accelerator.is_fsdp2:
        raise UserError("FSDP: set fsdp_version: 2, as training/fsdp.yaml does.")
    # accelerate's own policy would also round the loss and the sum of the gradients to 16 bits.
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32
    )


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, any other as it is; all processes have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, value: Tensor) -> Tensor:
    """This process's share of `value` if `tensor` is sharded; all processes have to ask."""
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors; all processes have to ask."""
    state: dict[str, Any] = optimizer.state_dict()
    state["state"] = {
        index: {
            name: whole(value).cpu() if isinstance(value, DTensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return state


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """The way back from `whole_optimizer_state`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def share(index: int, value: Any) -> Any:
        of_its_shape = isinstance(value, Tensor) and value.shape == parameters[index].shape
        return sharded_like(parameters[index], value) if of_its_shape else value

    shares = {
        index: {name: share(index, value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shares})
