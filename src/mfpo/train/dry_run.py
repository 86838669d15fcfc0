"""What a training would do, without loading weights: what is trained, steps, tokens, memory, and the first batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from torch import Tensor

from mfpo.folders import check_new
from mfpo.hub import find_model
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.prefix import shares_prefix
from mfpo.models import device, quiet, shape_of
from mfpo.train.arguments import steps_of_stages
from mfpo.train.batches import Order
from mfpo.train.memory import Memory, estimate
from mfpo.train.metrics import count_tokens
from mfpo.train.policy import PROJECTORS, attention_of, lora_targets, make_trainable, vision_towers
from mfpo.train.processes import processes
from mfpo.train.reference import read_known
from mfpo.train.run import check_settings, open_run
from mfpo.train.settings import TrainSettings
from mfpo.train.stage import Run, kept_reference
from mfpo.train.vision_cache import keep_features


@dataclass(frozen=True)
class Part:
    """How many parameters of a part of the model are trained, and how many are not."""

    trained: int = 0
    frozen: int = 0


@dataclass(frozen=True)
class Stage:
    name: str
    records: int
    steps: int


@dataclass(frozen=True)
class ReferencePass:
    """How many answers the reference computes, and how many are kept in `file` already."""

    answers: int
    kept: int
    file: Path


@dataclass(frozen=True)
class Shown:
    """A prompt or an answer of the first batch, decoded from its tokens: `sequence` says which."""

    record: str
    sequence: str
    tokens: int
    text: str


@dataclass(frozen=True)
class DryRun:
    """What a training would do.

    `sequences`, `tokens` and `tokens_saved`, the share of tokens saved by shared prefixes, are those of the first step
    of each stage, on average; `memory` is that of its largest batch, in one process, by device. `reference` is of the
    records, and of the held-out pairs if there are any.
    """

    parameters: dict[str, Part]
    stages: list[Stage]
    sequences: float
    tokens: float
    tokens_saved: float
    reference: list[ReferencePass]
    memory: dict[str, Memory]
    batch: list[Shown]


@quiet()
def dry_run(
    data: Path | str | datasets.Dataset,
    model: Any,
    out: Path | str,
    settings: TrainSettings | None = None,
    *,
    processor: Any = None,
) -> DryRun:
    """What `train` would do with the same arguments. Loads no weights, and writes and trains nothing.

    Raises MfpoError as `train` does before it loads the weights, and when `out` exists.
    """
    check_new(Path(out))
    settings = (settings or TrainSettings()).resolved()
    base = find_model(str(model)) if isinstance(model, str | Path) else model
    # What a base in 4 bits needs may not be installed here.
    check_settings(base, replace(settings, quantize_4bit=False))
    run, plan = open_run(Path(data) if isinstance(data, str) else data, base, Path(out), settings, processor)
    steps = steps_of_stages(plan, run.settings)
    policy = _policy(run, base)
    shared = shares_prefix(policy)
    firsts = [_first_step(run, rows) for _, rows in plan]
    batches = [run.pairs.collate([run.pairs[row] for row in rows], shared=shared) for step in firsts for rows in step]
    largest = max(batches, key=lambda batch: batch["input_ids"].numel())
    counts = [count_tokens(batch) for batch in batches]
    tokens, unshared = (float(sum(count[name] for count in counts)) for name in ("tokens", "tokens_unshared"))
    return DryRun(
        parameters=parameters_by_part(policy),
        stages=[Stage(name, len(rows), count) for (name, rows), count in zip(plan, steps, strict=True)],
        sequences=sum(len(batch["answer_ids"]) for batch in batches) / len(plan),
        tokens=tokens / len(plan),
        tokens_saved=1 - tokens / unshared,
        reference=[_reference_pass(of) for of in (run, run.held_out) if of],
        memory={name: estimate(policy, largest, run.settings, bf16=bf16) for name, bf16 in _devices(run.settings)},
        batch=list(decoded(run.pairs, firsts[0][0], run.processor.tokenizer)),
    )


def _count() -> int:
    return processes().num_processes


def _devices(settings: TrainSettings) -> Iterator[tuple[str, bool]]:
    """Where it may be trained, and whether in bfloat16."""
    if device().type == "cpu":
        yield "on this CPU", False
    yield "on a GPU", settings.bf16


def _reference_pass(run: Run) -> ReferencePass:
    file, hashes = kept_reference(run)
    known = read_known(file)
    are_kept = [sequence in known for record in hashes for sequence in record]
    return ReferencePass(answers=len(are_kept) - sum(are_kept), kept=sum(are_kept), file=file)


def _policy(run: Run, model: Any) -> Any:
    """The policy on the meta device, checked as the run's own."""
    base = shape_of(model)
    if shares_prefix(base):
        attention_of(base, run.settings)
    with torch.device("meta"):
        policy = make_trainable(base, run.settings, targets=lora_targets(base, run.settings), adapter=None)
    if run.settings.vision_cache:
        keep_features(policy, run.cache / ".vision")
    return policy


def parameters_by_part(policy: Any) -> dict[str, Part]:
    """The parameters of the policy, counted by part."""
    base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    tower = base.get_encoder(modality="image")
    projectors = [getattr(tower, name) for name in PROJECTORS if hasattr(tower, name)]
    language = [base.get_decoder(), base.get_input_embeddings(), base.get_output_embeddings()]
    # Of what is in two of them, the last one counts.
    places = {
        "vision tower": vision_towers(base) if tower is not base else [],
        "projector": projectors,
        "language model": language,
    }
    names = {id(weight): part for part, modules in places.items() for m in modules for weight in m.parameters()}
    counts: dict[str, Part] = {part: Part() for part in places}
    for name, weight in policy.named_parameters():
        part = "adapters" if "lora_" in name else names.get(id(weight), "projector")
        before = counts.get(part, Part())
        if weight.requires_grad:
            counts[part] = replace(before, trained=before.trained + weight.numel())
        else:
            counts[part] = replace(before, frozen=before.frozen + weight.numel())
    return counts


def _first_step(run: Run, rows: Sequence[int]) -> list[list[int]]:
    """The records of the first step of a stage on `rows`: those of each batch, of all processes."""
    size, count = run.settings.per_device_train_batch_size, _count()
    order = Order(len(rows), multiple=size * count if count > 1 else 1, seed=run.settings.seed, epoch=lambda: 0)
    places = islice(order, size * count * run.settings.gradient_accumulation_steps)
    picked = [rows[place % len(rows)] for place in places]
    return [picked[start : start + size] for start in range(0, len(picked), size)]


def decoded(pairs: Pairs, rows: Sequence[int], tokenizer: Any) -> Iterator[Shown]:
    """The records `rows` as the model gets them: each prompt that differs from the one before, and its answers."""
    for row in rows:
        before: Tensor | None = None
        names = iter(pairs.names)
        for prompt in pairs[row].prompts:
            if before is None or not torch.equal(before, prompt.prompt_ids):
                yield Shown(pairs.ids[row], "prompt", len(prompt.prompt_ids), spelled(tokenizer, prompt.prompt_ids))
            before = prompt.prompt_ids
            for answer, cut in zip(prompt.answers, prompt.cut, strict=True):
                text = spelled(tokenizer, answer) + (f" ({cut} more tokens are cut)" if cut else "")
                yield Shown(pairs.ids[row], next(names), len(answer), text)


def spelled(tokenizer: Any, ids: Tensor) -> str:
    """The text of `ids`, (tokens,), special tokens too; of one that repeats, as those of an image do, the number."""
    added = tokenizer.added_tokens_decoder
    parts: list[str] = []
    for is_added, run in groupby(ids.tolist(), key=lambda token: token if token in added else None):
        tokens = list(run)
        text = tokenizer.decode(tokens if is_added is None else tokens[:1], skip_special_tokens=False)
        parts.append(f"[{len(tokens)} x {text}]" if is_added is not None and len(tokens) > 1 else text)
    return "".join(parts)
