"""What `accelerate launch` starts in the tests: MODE SCRIPT ARGUMENTS.

sharded: weights sharded over processes on the CPU. `accelerate launch` starts the processes with
    or without cards, but accelerate then shards on cards alone: without any it goes on as DDP
    does. torch's FSDP runs on both, so that one decision is changed here; all else is as on cards.
memory-runs-out: once, in the second process, while the largest micro-batch is tried.
"""

import runpy
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from discord_lora.finetuning import out_of_memory


def sharded():
    begin = AcceleratorState.__init__

    def begin_sharded(state, *arguments, fsdp_plugin=None, **options):
        begin(state, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            state.fsdp_plugin = fsdp_plugin
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_sharded


def memory_runs_out():
    collate = out_of_memory.collate
    failures = []

    def fail_once(row):
        if PartialState().process_index == 1 and not failures:
            failures.append(row)
            raise torch.OutOfMemoryError("planted")
        return collate(row)

    out_of_memory.collate = fail_once


if __name__ == "__main__":
    {"sharded": sharded, "memory-runs-out": memory_runs_out}[sys.argv[1]]()
    del sys.argv[:2]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
