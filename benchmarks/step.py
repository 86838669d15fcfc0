"""A training step with shared prefixes against the plain ways to do it: TRL's, and three rows a record.

    python benchmarks/step.py --json step.json

Each side runs in a process of its own, on the same records, in the same precision, forward and backward, without the
optimizer, whose work is the same. Ours has no live reference: its pass over the records is counted, spread over the
epochs that it serves.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mfpo.logprobs.cells import TEXT, TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import sequence_logps
from mfpo.train.methods.dpo import dpo
from mfpo.train.methods.mfpo import mfpo
from mfpo.train.objectives import LogRatios, total

EPOCHS = 3
BETA = 0.1
WORDS = [f"w{i}" for i in range(32_000 - 4)]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':' }}{% if m['content'] is string %}{{ ' ' + m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ ' <image>' }}{% else %}{{ ' ' + part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}{{ ' </s>' }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The language model, the frozen vision tower, and the records of a batch."""

    width: int
    inner: int
    heads: int
    layers: int
    tower_width: int
    tower_layers: int
    batch: int
    answers: tuple[int, int]
    lora_rank: int = 0
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    side: int = 336  # of an image, in pixels; a token for each 14 x 14 of them


# The tower has about the share of the work that it has in LLaVA-1.5-7B. In 7b-full all sides hold bfloat16 weights, as
# TRL's two models fit no GPU of 80 GB else; `mfpo train` holds float32 ones and computes under autocast. In 7b-lora
# three rows for each of 8 records, without checkpointing, would fit no GPU of 141 GB.
SHAPES = {
    "small": Shape(768, 2048, 12, 8, tower_width=256, tower_layers=4, batch=4, answers=(40, 160)),
    "tiny": Shape(256, 640, 4, 4, tower_width=128, tower_layers=2, batch=4, answers=(40, 160)),
    "7b-full": Shape(
        4096, 11008, 32, 32, 1024, 24, batch=4, answers=(40, 160), dtype=torch.bfloat16, checkpointing=True
    ),
    "7b-lora": Shape(4096, 11008, 32, 32, 1024, 24, batch=4, answers=(40, 160), lora_rank=128, dtype=torch.bfloat16),
}
SIDES = ("mfpo", "dpo", "trl_dpo", "plain_live", "plain_precomputed")


def make_model(shape: Shape, *, attention: str = "sdpa") -> Any:
    """A random LLaVA, on the GPU if there is one. The tower is frozen.

    `attention` is the language model's.
    """
    torch.manual_seed(0)
    text = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    tower = {"hidden_size": shape.tower_width, "num_hidden_layers": shape.tower_layers}
    tower |= {"num_attention_heads": shape.tower_width // 64, "intermediate_size": 4 * shape.tower_width}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower, image_size=shape.side, patch_size=14),
        text_config=LlamaConfig(**text, vocab_size=32_000, intermediate_size=shape.inner),
        image_token_index=3,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=shape.dtype)
    model.set_attn_implementation({"text_config": attention})
    model.model.vision_tower.requires_grad_(False)
    if shape.lora_rank:
        from peft import LoraConfig, get_peft_model

        targets = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
        pattern = rf".*language_model.*({'|'.join(targets)})"
        model = get_peft_model(model, LoraConfig(r=shape.lora_rank, lora_alpha=256, target_modules=pattern))
    if shape.checkpointing:
        model.gradient_checkpointing_enable()
    return model


def make_processor(shape: Shape) -> Any:
    """One token a word, so that answers have the lengths that are asked for."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<image>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    side = shape.side
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        images,
        fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def make_records(shape: Shape, batches: int) -> datasets.Dataset:
    random = np.random.default_rng(0)

    def say(words: int, role: str) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(random.choice(WORDS, words))}]

    def picture() -> list[Image.Image]:
        return [Image.fromarray(random.integers(0, 256, (shape.side, shape.side, 3), dtype=np.uint8))]

    low, high = shape.answers
    rows = [
        {
            "id": str(number),
            "images": picture(),
            "rejected_images": picture(),
            "prompt": say(30, "user"),
            "chosen": say(random.integers(low, high), "assistant"),
            "rejected": say(random.integers(low, high), "assistant"),
        }
        for number in range(shape.batch * batches)
    ]
    return datasets.Dataset.from_list(rows)


# ---- the sides: each gives a function that does one step on a batch of records, and its loss


def ours(method: str, shape: Shape, records: datasets.Dataset) -> Iterator[Callable[[], float]]:
    """Shared prefixes; the reference pass over the same batch is done apart, by `reference_seconds`."""
    model = make_model(shape, attention="flex_attention" if torch.cuda.is_available() else "sdpa")
    pairs = Pairs(records, make_processor(shape), cells=TEXT_AND_IMAGE if method == "mfpo" else TEXT, max_length=2048)
    for start in range(0, len(pairs), shape.batch):
        batch = pairs.collate([pairs[row] for row in range(start, start + shape.batch)], shared=True)
        batch.pop("rows")

        def reference(batch: dict[str, Tensor] = batch) -> Tensor:
            with torch.no_grad():
                return by_kind(sequence_logps(model, batch), len(pairs.names))

        def step(batch: dict[str, Tensor] = batch) -> float:
            started = clocks()
            kept = reference()
            SHARED.append((clocks() - started).tolist())
            ratios = LogRatios(*(by_kind(sequence_logps(model, batch), len(pairs.names)) - kept))
            loss = total(mfpo(ratios, beta=BETA) if method == "mfpo" else dpo(ratios, beta=BETA)).mean()
            loss.backward()
            model.zero_grad()
            return loss.item()

        yield step


# Wall and processor seconds of our reference passes, which serve all epochs.
SHARED: list[list[float]] = []


def clocks() -> Any:
    """Wall and processor seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def by_kind(logps: Tensor, kinds: int) -> Tensor:
    return logps.view(-1, kinds).T


def plain(has_reference: bool, shape: Shape, records: datasets.Dataset) -> Iterator[Callable[[], float]]:
    """Three padded rows a record, each with its image, all logits: what mDPO's trainer does."""
    model = make_model(shape)
    # With adapters, peers take the model without them, not a second one.
    reference = model if shape.lora_rank or not has_reference else make_model(shape).requires_grad_(False)
    processor = make_processor(shape)
    for start in range(0, len(records), shape.batch):
        rows = records.select(range(start, start + shape.batch))
        kinds = [("images", "chosen"), ("images", "rejected"), ("rejected_images", "chosen")]
        encoded = [encode_plain(processor, row, *kind) for kind in kinds for row in rows]
        pictures, ids, masks = zip(*encoded, strict=True)
        inputs = {
            "input_ids": pad_sequence(ids, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "pixel_values": torch.cat(pictures),
        }
        answers = pad_sequence(masks, batch_first=True)

        def logps(model: Any, inputs: dict[str, Tensor] = inputs, answers: Tensor = answers) -> Tensor:
            moved = {name: value.to(model.device) for name, value in inputs.items()}
            logits = model(**moved, use_cache=False).logits[:, :-1].float()
            token = F.log_softmax(logits, -1).gather(-1, moved["input_ids"][:, 1:, None]).squeeze(-1)
            return (token * answers[:, 1:].to(token.device)).sum(-1).view(3, -1)

        kept = torch.zeros(3, shape.batch)
        with torch.no_grad():
            kept = logps(model).cpu() if not has_reference else kept

        def step(logps: Callable[..., Tensor] = logps, kept: Tensor = kept) -> float:
            with torch.no_grad(), model.disable_adapter() if shape.lora_rank else nullcontext():
                before = logps(reference) if has_reference else kept
            ours = logps(model)
            loss = total(mfpo(LogRatios(*(ours - before.to(ours.device))), beta=BETA)).mean()
            loss.backward()
            model.zero_grad()
            return loss.item()

        yield step


def encode_plain(processor: Any, row: dict[str, Any], images: str, answer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, token ids, and which of them are the answer's."""
    content = [{"type": "image"}, {"type": "text", "text": row["prompt"][0]["content"]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    text = row[answer][0]["content"]
    inputs = processor(text=f"{prompt} {text} </s>", images=row[images], return_tensors="pt")
    ids = inputs["input_ids"][0]
    return inputs["pixel_values"], ids, torch.arange(len(ids)) >= len(ids) - len(text.split()) - 1


def trl_dpo(shape: Shape, records: datasets.Dataset) -> Iterator[Callable[[], float]]:
    """TRL's DPOTrainer: its own batches, loss and live reference."""
    from trl import DPOConfig, DPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            make_model(shape),
            ref_model=None if shape.lora_rank else make_model(shape),
            args=DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=shape.batch,
                max_length=None,
                beta=BETA,
                use_cpu=not torch.cuda.is_available(),
                bf16=shape.dtype == torch.bfloat16,
                gradient_checkpointing=shape.checkpointing,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=records.remove_columns(["id", "rejected_images"]),
            processing_class=make_processor(shape),
        )
        model = trainer.model_wrapped
        model.train()
        for batch in trainer.get_train_dataloader():

            def step(batch: dict[str, Any] = batch) -> float:
                loss = trainer.compute_loss(model, trainer._prepare_inputs(batch))
                loss.backward()
                model.zero_grad()
                return loss.item()

            yield step


def steps_of(side: str, shape: Shape, records: datasets.Dataset) -> Iterator[Callable[[], float]]:
    if side in ("mfpo", "dpo"):
        return ours(side, shape, records)
    if side == "trl_dpo":
        return trl_dpo(shape, records)
    return plain(side == "plain_live", shape, records)


# ---- measuring


def run_side(side: str, shape: Shape, steps: int) -> dict[str, float]:
    """Median seconds of a step, by the clock and of the processor, the peak memory and the first loss."""
    wall, cpu, losses = [], [], []
    # As trainers compute with adapters in float32 on a base in bfloat16.
    mixed = torch.autocast("cuda", torch.bfloat16, enabled=shape.dtype == torch.bfloat16 and torch.cuda.is_available())
    for number, step in enumerate(steps_of(side, shape, make_records(shape, steps + 1))):
        SHARED.clear()
        started = clocks()
        with mixed:
            losses.append(step())
        spent = clocks() - started
        once = SHARED[0] if SHARED else (0.0, 0.0)
        if number:  # the first warms up
            wall.append(spent[0] - once[0] * (1 - 1 / EPOCHS))
            cpu.append(spent[1] - once[1] * (1 - 1 / EPOCHS))
    return {
        "wall": statistics.median(wall),
        "cpu": statistics.median(cpu),
        "memory": peak_memory(),
        "loss": losses[0],
    }


def peak_memory() -> float:
    """Bytes: of the GPU, or of this process (getrusage would count the process that forked it)."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) * 1024


def step_flops(shape: Shape) -> float:
    """Useful FLOPs of mfpo's step.

    2 FLOPs a weight and token of the language model, 2 a weight of the head and answer token, 4 a layer, dimension and
    pair of tokens that see each other; that once for the forward pass, once for the gradients of what goes through, and
    once for those of the weights, which adapters spare. Forward alone: the vision tower, once an image, and the
    reference pass, of which an epoch bears its part. Norms, softmax, adapters, what a mask hides and what checkpointing
    computes again do not count.
    """
    pairs = Pairs(make_records(shape, 1), make_processor(shape), cells=TEXT_AND_IMAGE, max_length=2048)
    batch = pairs.collate([pairs[row] for row in range(shape.batch)], shared=True)
    is_token = batch["documents"] >= 0
    # A token sees itself, the prompt before it and its own answer before it: as many as its position says, and one.
    seen = int((batch["position_ids"] + 1)[is_token].sum())
    body = 2 * shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.inner) * int(is_token.sum())
    head = 2 * 32_000 * shape.width * int(batch["answer_mask"].sum())
    attention = 4 * shape.layers * shape.width * seen
    patches = (shape.side // 14) ** 2 + 1
    tower = 2 * shape.tower_layers * 12 * shape.tower_width**2 * patches * len(batch["pixel_values"])
    passes = 2 if shape.lora_rank else 3
    return (passes + 1 / EPOCHS) * (body + head + attention) + (1 + 1 / EPOCHS) * tower


def matmul_rate(dtype: torch.dtype, size: int = 4096) -> float:
    """FLOPs a second of the best of four products of large matrices."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    rates = []
    for _ in range(4):
        started = time.perf_counter()
        (a @ b).sum().item()
        rates.append(2 * size**3 / (time.perf_counter() - started))
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--steps", type=int, default=3, help="steps of each side that are timed")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    if arguments.side:
        print(json.dumps(run_side(arguments.side, shape, arguments.steps)))
        return
    console = Console()
    sides: dict[str, dict[str, float]] = {}
    for side in SIDES:
        options = ["--side", side, "--shape", arguments.shape, "--steps", str(arguments.steps)]
        with console.status(side):
            done = subprocess.run([sys.executable, __file__, *options], check=True, capture_output=True, text=True)
        sides[side] = json.loads(done.stdout.splitlines()[-1])
    figures = compare(sides, shape)
    show(sides, figures, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | {"sides": sides}, indent=2) + "\n", encoding="utf-8")


def compare(sides: dict[str, dict[str, float]], shape: Shape) -> dict[str, Any]:
    def speedup(slow: str, fast: str, by: str) -> float:
        return sides[slow][by] / sides[fast][by]

    ratios = {
        "plain_live": ("plain_live", "mfpo"),
        "plain_precomputed": ("plain_precomputed", "mfpo"),
        "trl_dpo": ("trl_dpo", "dpo"),
        "mfpo_vs_trl_dpo": ("trl_dpo", "mfpo"),
    }
    return {
        "speedup": {name: speedup(*both, "wall") for name, both in ratios.items()},
        "speedup_of_processor_time": {name: speedup(*both, "cpu") for name, both in ratios.items()},
        "memory_vs_trl": sides["mfpo"]["memory"] / sides["trl_dpo"]["memory"],
        "dpo_memory_vs_trl": sides["dpo"]["memory"] / sides["trl_dpo"]["memory"],
        "matmul_share": step_flops(shape) / sides["mfpo"]["wall"] / matmul_rate(shape.dtype),
    }


def show(sides: dict[str, dict[str, float]], figures: dict[str, Any], console: Console) -> None:
    table = Table("side", "seconds a step", "processor seconds", "peak memory, GiB", "first loss")
    for side, has in sides.items():
        table.add_row(
            side, f"{has['wall']:.2f}", f"{has['cpu']:.2f}", f"{has['memory'] / 2**30:.2f}", f"{has['loss']:.4f}"
        )
    console.print(table)
    console.print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
