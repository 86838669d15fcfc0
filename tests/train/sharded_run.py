"""`mfpo` as accelerate starts it, with a model that is sharded though it is on a CPU.

`accelerate launch --config_file fsdp2.yaml sharded_run.py train ...`. On CPUs accelerate passes over FSDP and trains
with DDP; told that its processes have GPUs, it shards on what they have.
"""

from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from mfpo.cli import main

start = AcceleratorState.__init__


def start_sharded(self: AcceleratorState, *arguments: Any, **options: Any) -> None:
    known = PartialState._shared_state
    if known.get("distributed_type") == DistributedType.MULTI_CPU:
        known["distributed_type"] = DistributedType.MULTI_GPU
    start(self, *arguments, **options)
    assert self.distributed_type == DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = start_sharded
    main()
