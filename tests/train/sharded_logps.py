"""Run by torchrun in two processes: log-probabilities and gradients of a model sharded by FSDP2 are those of the whole.

`torchrun --nproc_per_node 2 sharded_logps.py DATA MODEL`; exits with 1 where they are not. The sharding is done
here as accelerate does it: the layers, the embeddings, the head with the last norm, the rest; in float32, and in the
precision of `mfpo train`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from mfpo.logprobs import sequences as logprobs
from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import sequence_logps
from mfpo.models import load_model, load_processor
from mfpo.records import read_dataset
from mfpo.train.policy import SHARDED_PRECISION


def main() -> None:
    data, folder = map(Path, sys.argv[1:3])
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    whole, sharded, rounded = (load_model(folder) for _ in range(3))
    for model in (whole, sharded, rounded):
        model.get_encoder(modality="image").requires_grad_(False)
    shard(sharded, mesh, MixedPrecisionPolicy())
    shard(rounded, mesh, SHARDED_PRECISION)
    pairs = Pairs(read_dataset(data), load_processor(folder), cells=TEXT_AND_IMAGE, max_length=999)
    batch = pairs.collate([pairs[0], pairs[1]], shared=True)
    batch.pop("rows")
    for logits in (logprobs._LOGITS, 2000):  # in one piece, and in chunks that the backward pass computes again
        logprobs._LOGITS = logits
        for model in (whole, sharded):
            model.zero_grad()
        expected, found = sequence_logps(whole, dict(batch)), sequence_logps(sharded, dict(batch))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        expected.sum().backward()
        found.sum().backward()
        trained = 0
        for (name, weight), other in zip(whole.named_parameters(), sharded.parameters(), strict=True):
            if weight.requires_grad and weight.grad is not None:
                gradient = other.grad.full_tensor() if isinstance(other.grad, DTensor) else other.grad
                torch.testing.assert_close(gradient, weight.grad, rtol=1e-3, atol=1e-4, msg=name)
                trained += 1
        assert trained > 10
    found = sequence_logps(rounded, dict(batch))  # asserts that token by token they come out in float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = sequence_logps(whole, dict(batch))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0.3)
    assert not torch.equal(found, found.bfloat16().float())
    found.sum().backward()
    dist.destroy_process_group()


def shard(model: Any, mesh: DeviceMesh, precision: MixedPrecisionPolicy) -> None:
    language = model.get_decoder()
    for layer in language.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    fully_shard(model.get_input_embeddings(), mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    tail = [language.norm, model.get_output_embeddings()]
    fully_shard(tail, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=True)


if __name__ == "__main__":
    main()
