"""What several processes of one run have to agree on."""

import torch
from accelerate import Accelerator


def anywhere(accelerator: Accelerator, flag: bool) -> bool:
    """True if the flag is up in any process: all of them have to leave the loop together."""
    return smallest(accelerator, int(not flag)) == 0


def smallest(accelerator: Accelerator, number: int) -> int:
    """The smallest of the numbers that the processes bring; all of them have to ask."""
    if accelerator.num_processes == 1:
        return number
    numbers = accelerator.gather(torch.tensor([number], device=accelerator.device))
    return int(numbers.min())
