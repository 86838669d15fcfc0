"""What a GPU computes and how fast, in at most 9 minutes: log p, training steps, answers, regions, builds.

    python benchmarks/gpu.py --out OUT

Written for one H200 with torch 2.11, transformers 5.17, accelerate and peft, and no network: there, bring the wheels of
datasets, dill, multiprocess, pycocotools, textblob, nltk and defusedxml, and that of trl, without which TRL's rows are
left out. Run it with PYTHONPATH=src. No weights are needed: all are random.

Each part runs in a process of its own. OUT/gpu.jsonl gets its rows as they come, OUT/gpu.md the tables for RESULTS.md
after each part. A part that does not fit into --minutes, or fails, is named there with the reason. Exits with 1 where
log p is wrong or a part failed. --tiny tries all of it on a CPU.
"""

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from step import SHAPES, Shape, clocks, make_model, make_processor, matmul_rate, peak_memory, run_side, step_flops

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fixtures.families import SHARED, ragged_rows, through
from mfpo.answer.greedy import greedy
from mfpo.build.engine import Threads
from mfpo.build.pipeline import build_into
from mfpo.build.regions import Search
from mfpo.build.regions.detectors import load_detector
from mfpo.build.regions.sam import Sam
from mfpo.build.settings import BuildSettings, RegionSettings
from mfpo.errors import SettingError, first_line
from mfpo.images import EncodedImage, encode_image
from mfpo.logprobs.sequences import by_token, collate, in_chunks, logps_of, plain_scores, token_logps
from mfpo.records import Keyword, Origin, SourceRecord, new_record
from mfpo.train.policy import attention_of
from mfpo.train.settings import TrainSettings

Row = dict[str, Any]

# Dense bfloat16 of an H100 or H200, by the vendor's datasheet.
PEAK_FLOPS = 989e12

TINY = {
    "7b-lora": Shape(64, 96, 4, 2, tower_width=64, tower_layers=1, batch=1, answers=(5, 9), lora_rank=4, side=56),
    "7b-full": Shape(64, 96, 4, 2, 64, tower_layers=1, batch=1, answers=(5, 9), checkpointing=True, side=56),
}


@dataclass(frozen=True)
class Part:
    """`run` yields rows; it is not begun with less than `least` seconds left, and stopped after `most`."""

    name: str
    run: Callable[[], Iterator[Row]]
    least: float
    most: float


# ---- the parts


def log_p(attention: str, *, tiny: bool) -> Iterator[Row]:
    """Of tiny models of each shared family: shared prefixes against one answer a row, in nats a token."""
    for name in sorted(SHARED)[: 4 if tiny else None]:
        try:
            yield from log_p_of(name, attention)
        except Exception as error:  # such as a family that another transformers does not have
            yield {"family": name, "attention": attention} | failure(error)


def log_p_of(name: str, attention: str) -> Iterator[Row]:
    torch.manual_seed(0)
    made, processor = SHARED[name]()
    rows = ragged_rows(through(processor))
    exact = None
    for dtype in (torch.float32, torch.bfloat16):
        model = made.eval().to("cuda" if torch.cuda.is_available() else "cpu", dtype)
        plain = plain_logps(model, [part for row in rows for part in row.split()])
        exact = plain if exact is None else exact
        row = {"family": name, "attention": attention, "dtype": str(dtype).removeprefix("torch.")}
        try:
            attention_of(model, TrainSettings(attention=attention))
        except SettingError as error:
            yield row | {"skipped": str(error)}
            continue
        model.set_attn_implementation({"text_config": attention})
        with torch.no_grad():
            shared = token_logps(model, collate(rows, 0))
        model.set_attn_implementation({"text_config": "sdpa"})
        off, rounding = float((shared - plain).abs().max()), float((plain - exact).abs().max())
        allowed = 1e-3 if dtype == torch.float32 else max(3 * rounding, 0.1)
        yield row | {"off": off, "rounding": rounding, "right": off <= allowed}


def plain_logps(model: Any, rows: list[Any]) -> torch.Tensor:
    batch = collate(rows, 0)
    with torch.no_grad():
        return by_token(plain_scores(model, batch, in_chunks(model, logps_of)), batch)


def training_step(side: str, shape_name: str, shape: Shape, *, steps: int) -> Iterator[Row]:
    """One side of `step.py` on LLaVA-1.5-7B's shapes."""
    if side == "trl_dpo" and find_spec("trl") is None:
        yield {"shape": shape_name, "side": side, "skipped": "trl is not installed"}
        return
    row = {"shape": shape_name, "side": side} | run_side(side, shape, steps)
    if side == "mfpo":
        rate = step_flops(shape) / row["wall"]
        row |= {"mfu": rate / PEAK_FLOPS, "of_matmul": rate / matmul_rate(shape.dtype, 512 if steps == 1 else 8192)}
    yield row


def answers(shape: Shape, *, questions: int, at_once: int, tokens: int) -> Iterator[Row]:
    """Greedy answers of `tokens` tokens about an image each; random weights hardly ever end one earlier."""
    model, processor = make_model(replace(shape, lora_rank=0, checkpointing=False)).eval(), make_processor(shape)
    random = np.random.default_rng(0)
    pictures = [
        Image.fromarray(random.integers(0, 256, (shape.side, shape.side, 3), dtype=np.uint8)) for _ in range(at_once)
    ]
    asked: list[Any] = [{"question_id": str(n), "image": "", "text": f"w{n} w2 w3"} for n in range(at_once)]
    with torch.inference_mode():
        greedy(model, processor, asked, pictures, 2)  # warms up
        started = clocks()
        for _ in range(questions // at_once):
            texts = greedy(model, processor, asked, pictures, tokens)
        seconds = float((clocks() - started)[0])
    words = sum(len(text.split()) for text in texts) / at_once
    yield {
        "questions": questions,
        "at_once": at_once,
        "tokens": words,
        "answers_a_second": questions / seconds,
        "memory": peak_memory(),
    }


def regions(*, tiny: bool) -> Iterator[Row]:
    """Grounding DINO base and SAM ViT-H on photos of 640 x 480: three keywords, of each two boxes that are given."""
    images, batch = (2, 2) if tiny else (64, 8)
    with tempfile.TemporaryDirectory() as folder:
        detector, sam = save_detector(Path(folder) / "dino", tiny=tiny), save_sam(Path(folder) / "sam", tiny=tiny)
        # None of random weights' boxes count, so that their number does not depend on chance.
        settings = RegionSettings(region_batch=batch, box_threshold=1.0)
        detect, segment = load_detector(str(detector), settings), Sam(str(sam), settings)
    searches = [search(number) for number in range(images)]
    corners = torch.tensor([[40.0, 40.0, 200.0, 220.0], [300.0, 100.0, 600.0, 400.0]])

    def find(some: list[Search]) -> None:
        detect(some)
        for image in segment.embed(some):
            for _ in some[0].keywords:
                segment.union(image, corners)

    find(searches[:batch])  # warms up
    started = clocks()
    for start in range(0, images, batch):
        find(searches[start : start + batch])
    seconds = float((clocks() - started)[0])
    yield {"images": images, "at_once": batch, "images_a_second": images / seconds, "memory": peak_memory()}


def save_detector(folder: Path, *, tiny: bool) -> Path:
    swin = {"model_type": "swin", "out_indices": [2, 3, 4], "image_size": 384, "window_size": 12}
    swin |= {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
    text: Row = {"model_type": "bert", "vocab_size": 30522}
    more: Row = {}
    if tiny:
        swin |= {"image_size": 64, "window_size": 4, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2]}
        text |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        more = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 12}
        more |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32}
    config = transformers.GroundingDinoConfig(backbone_config=swin, text_config=text, **more)
    # The model knows the ids of BERT's marks by heart.
    places = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?", 2000: "dog", 2001: "cat"}
    vocabulary = {places.get(n, f"[unused{n}]"): n for n in range(30522)}
    size = {"shortest_edge": 96, "longest_edge": 192} if tiny else {"shortest_edge": 800, "longest_edge": 1333}
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    transformers.GroundingDinoImageProcessorPil(size=size).save_pretrained(folder)
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def save_sam(folder: Path, *, tiny: bool) -> Path:
    tower: Row = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120}
    tower |= {"global_attn_indexes": [7, 15, 23, 31]}
    prompt: Row = {}
    if tiny:
        tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 64, "image_size": 64}
        tower |= {"global_attn_indexes": [0], "patch_size": 8, "window_size": 4}
        prompt = {"image_size": 64, "patch_size": 8}
    side = 64 if tiny else 1024
    config = transformers.SamConfig(vision_config=tower, prompt_encoder_config=prompt)
    transformers.SamModel(config).save_pretrained(folder)
    sizes = {"size": {"longest_edge": side}, "pad_size": {"height": side, "width": side}}
    transformers.SamImageProcessorPil(**sizes).save_pretrained(folder)
    return folder


def search(number: int) -> Search:
    keywords = [Keyword(text=text, score=1.0) for text in ("dog", "cat", "cat dog")]
    return Search(Photos(1).record({"number": number}, number), 0, photo(number), keywords)


def photo(number: int) -> Any:
    """Pixels, (480, 640, 3), of patches and some noise, which encode about as photos do."""
    random = np.random.default_rng(number)
    patches = random.integers(0, 240, (15, 20, 3), dtype=np.uint8).repeat(32, axis=0).repeat(32, axis=1)
    return patches + random.integers(0, 16, patches.shape, dtype=np.uint8)


class Photos:
    """A source of `count` records with photos that are encoded already."""

    name = "photos"

    def __init__(self, count: int) -> None:
        self.count, self.encoded = count, [encode_image(Image.fromarray(photo(number))) for number in range(8)]

    def __iter__(self) -> Iterator[Row]:
        return ({"number": number} for number in range(self.count))

    def id(self, row: Row, number: int) -> str:
        return str(row["number"])

    def record(self, row: Row, number: int) -> SourceRecord:
        image: EncodedImage = self.encoded[row["number"] % len(self.encoded)]
        origin = Origin(dataset=self.name, row=number)
        texts = {"question": "What is there?", "chosen": "A dog on a mat.", "rejected": "A cat on a mat."}
        return new_record(id=str(row["number"]), images=[image], **texts, source=origin)


def build(count: int) -> Iterator[Row]:
    """Records with photos of 640 x 480 and noise all over, without a segmenter."""
    for workers in (1, 16):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            settings = BuildSettings(corruption="global")
            build_into(Photos(count), Path(folder) / "out", settings, engine=Threads(workers))
            seconds = time.perf_counter() - started
        yield {"records": count, "workers": workers, "records_a_second": count / seconds}


def all_parts(*, tiny: bool) -> list[Part]:
    """The most important first."""
    shapes = TINY if tiny else {name: SHAPES[name] for name in TINY}
    flex = [] if tiny else [Part("log p, flex_attention", partial(log_p, "flex_attention", tiny=tiny), 40, 120)]
    sides = {"7b-lora": ("mfpo", "trl_dpo", "dpo", "plain_live", "plain_precomputed")}
    sides["7b-full"] = ("mfpo", "plain_live") if tiny else ("mfpo", "trl_dpo", "plain_live", "dpo", "plain_precomputed")
    count = 1 if tiny else 4
    steps = {
        name: [
            Part(f"step {name} {side}", partial(training_step, side, name, shapes[name], steps=count), 25, 70)
            for side in sides[name]
        ]
        for name in shapes
    }
    counts = {"questions": 2, "at_once": 2, "tokens": 4} if tiny else {"questions": 64, "at_once": 32, "tokens": 128}
    return [
        Part("log p, sdpa", partial(log_p, "sdpa", tiny=tiny), 20, 60),
        *steps["7b-lora"],
        Part("answers", partial(answers, shapes["7b-lora"], **counts), 25, 60),
        Part("regions", partial(regions, tiny=tiny), 25, 60),
        Part("build", partial(build, 4 if tiny else 1_000), 15, 40),
        *flex,
        *steps["7b-full"],
    ]


# ---- running them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.jsonl and gpu.md")
    parser.add_argument("--minutes", type=float, default=8.7, help="when the last part is stopped at the latest")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on a CPU")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    about = machine(tiny=arguments.tiny)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with (arguments.out / "gpu.jsonl").open("w", encoding="utf-8") as file:
        for part in all_parts(tiny=arguments.tiny):
            for row in in_process(part, end, tiny=arguments.tiny):
                rows.append({"part": part.name} | row)
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
                print(json.dumps(rows[-1]), flush=True)
            (arguments.out / "gpu.md").write_text(markdown(about, rows), encoding="utf-8")
    sys.exit(int(any("failed" in row or row.get("right") is False for row in rows)))


def in_process(part: Part, end: float, *, tiny: bool) -> Iterator[Row]:
    """The rows of a part, whose process is stopped when its time is over."""
    left = end - time.monotonic()
    if left < part.least:
        yield {"skipped": f"{max(left, 0):.0f} s are left, and it needs {part.least:.0f}"}
        return
    # A fork spares the imports, but a GPU wants a fresh process.
    context: Any = multiprocessing.get_context("fork" if tiny else "spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=send_rows, args=(part, theirs))
    process.start()
    theirs.close()
    deadline = time.monotonic() + min(part.most, left)
    try:
        while True:
            if not ours.poll(max(0.0, deadline - time.monotonic())):
                yield {"failed": f"stopped after {min(part.most, left):.0f} s"}
                return
            row = ours.recv()
            if row is None:
                return
            yield row
    except EOFError:
        yield {"failed": "its process died"}
    finally:
        process.kill()
        process.join()


def send_rows(part: Part, to: Connection) -> None:
    try:
        for row in part.run():
            to.send(row)
    except Exception as error:  # whatever it is, the other parts are run
        to.send(failure(error))
    to.send(None)


def failure(error: Exception) -> Row:
    return {"failed": f"{type(error).__name__}: {first_line(error)}"}


# ---- tables


def markdown(about: str, rows: list[Row]) -> str:
    """Tables for RESULTS.md of what has been measured so far."""
    shown = [row for row in rows if not {"skipped", "failed"} & row.keys()]
    tables = [
        table(
            "log p, shared prefixes against one answer a row, nats a token at most",
            {"family": "{}", "attention": "{}", "dtype": "{}", "off": "{:.2g}", "rounding": "{:.2g}", "right": "{}"},
            [row for row in shown if "family" in row],
        ),
        table(
            "A training step of LLaVA-1.5-7B's shapes",
            {
                "shape": "{}",
                "side": "{}",
                "wall": "{:.2f} s",
                "memory": "GiB",
                "mfu": "{:.2f}",
                "of_matmul": "{:.2f}",
            },
            [row for row in shown if "side" in row],
        ),
        table(
            "Answers of LLaVA-1.5-7B's shapes",
            {"questions": "{}", "at_once": "{}", "tokens": "{:.0f}", "answers_a_second": "{:.2f}", "memory": "GiB"},
            [row for row in shown if "answers_a_second" in row],
        ),
        table(
            "Grounded SAM (Grounding DINO base, SAM ViT-H, random weights)",
            {"images": "{}", "at_once": "{}", "images_a_second": "{:.2f}", "memory": "GiB"},
            [row for row in shown if "images_a_second" in row],
        ),
        table(
            "Building, noise all over photos of 640 x 480",
            {"records": "{}", "workers": "{}", "records_a_second": "{:.0f}"},
            [row for row in shown if "workers" in row],
        ),
    ]
    left_out = [row for row in rows if {"skipped", "failed"} & row.keys()]
    if left_out:
        reasons = [named(row) for row in left_out]
        tables.append("### Not measured\n\n" + "\n".join(f"- {reason}" for reason in reasons) + "\n")
    return "\n".join([f"## On a GPU\n\n{about}\n", *filter(None, tables)])


def machine(*, tiny: bool) -> str:
    where = "a CPU, tiny shapes, to try the script" if tiny else gpu_name()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"`python benchmarks/gpu.py --out OUT`, {where}; {versions}, {date.today()}."


def gpu_name() -> str:
    """As the driver says: torch would start CUDA in this process, which every part would find busy."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        sys.exit("there is no GPU; --tiny tries all of it on a CPU")


def table(title: str, columns: dict[str, str], rows: list[Row]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(name.replace("_", " ") for name in columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(cell(row.get(name), how) for name, how in columns.items()) + " |")
    return f"### {title}\n\n" + "\n".join(lines) + "\n"


def cell(value: Any, how: str) -> str:
    if value is None:
        return ""
    return f"{value / 2**30:.1f} GiB" if how == "GiB" else how.format(value)


def named(row: Row) -> str:
    what = " ".join(str(row[name]) for name in ("family", "dtype") if name in row)
    return f"{row['part']}{', ' + what if what else ''}: {row.get('skipped') or row['failed']}"


if __name__ == "__main__":
    main()
