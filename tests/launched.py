"""A script with something amiss, as the tests start it: MODE SCRIPT ARGUMENTS.

sharded: weights sharded over processes on the CPU. `accelerate launch` starts the processes with
    or without cards, but accelerate then shards on cards alone: without any it goes on as DDP
    does. torch's FSDP runs on both, so that one decision is changed here; all else is as on cards.
memory-runs-out: once, in the second process, while the largest micro-batch is tried.
slow-disk: the second checkpoint takes a minute to reach the disk.
hangs: the third step stands still until the watchdog, set to a second, has said so.
"""

import os
import runpy
import sys
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from discord_lora.finetuning import keeping, loop, out_of_memory, watchdog


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


def slow_disk():
    save_checkpoint, fsync, saves = keeping.save_checkpoint, os.fsync, []

    def counted(*arguments, **options):
        saves.append(arguments)
        return save_checkpoint(*arguments, **options)

    def slow(number):
        if len(saves) > 1:
            print("writing", flush=True)
            time.sleep(60)
        fsync(number)

    keeping.save_checkpoint = counted
    os.fsync = slow


def hangs():
    watchdog.LEAST_SECONDS, watchdog.POLL_SECONDS = 1.0, 0.1
    watchdog.TIMES_THE_USUAL = 2  # where other work keeps the machine busy, a step takes a while
    train_step = loop.train_step

    def stand_still(state, events, step, examples):
        if step == 3:
            time.sleep(4)
        return train_step(state, events, step, examples)

    loop.train_step = stand_still


MODES = {
    "sharded": sharded,
    "memory-runs-out": memory_runs_out,
    "slow-disk": slow_disk,
    "hangs": hangs,
}

if __name__ == "__main__":
    MODES[sys.argv[1]]()
    del sys.argv[:2]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
