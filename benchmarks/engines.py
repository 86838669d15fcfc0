"""The engines that no test runs, each against the plain way on this machine's CPU, as rows of a table.

python benchmarks/engines.py --json engines.json
python benchmarks/engines.py zero2 zero3

zero2, zero3: the picture book trained by two processes that are killed after five steps and started again,
against one process that is left alone. flex_attention: log p by the kernel that torch compiles, against sdpa.
trackio, wandb: what each has of a run's curves, read from its own files. A part whose package is missing
is left out with a note. DeepSpeed compiles for a minute, and needs a C++ compiler and ninja.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
import yaml
from rich.console import Console

from mfpo.dataset import read_dataset
from mfpo.files import read_rows
from mfpo.folders import write_json
from mfpo.logprobs.cells import TEXT_AND_IMAGE
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import sequence_logps
from mfpo.models import load_model
from mfpo.picturebook import WEIGHTS
from mfpo.processors import load_processor

CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"
MFPO = ["-m", "mfpo.cli"]
# Nine steps, in three stages.
SETTINGS = ["learning_rate=3e-5", "num_train_epochs=3", "logging_steps=1", "save_steps=1"]
COMPARED = ("loss", "rewards/chosen", "rewards/image_margins", "logps/rejected", "grad_norm")
# Ninja lies beside Python where pip has installed it.
ENVIRONMENT = os.environ | {
    "CUDA_VISIBLE_DEVICES": "",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"no part is named {', '.join(unknown)}; there are {', '.join(PARTS)}")
    rows = {}
    print("| engine | version | seen | seconds |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run([*MFPO, "build", "picturebook:12", "--out", "pairs"], folder)
        run([*MFPO, "rank", "pairs", "--model", "picturebook", "--out", "data"], folder)
        for part in arguments.parts or PARTS:
            package, check = PARTS[part]
            if find_spec(package) is None:
                Console(stderr=True).print(f"{part} left out; run `pip install {package}`")
                continue
            started = time.monotonic()
            seen, seconds = check(folder, part), time.monotonic() - started
            rows[part] = {"version": version(package), "seen": seen, "seconds": seconds}
            print(f"| {part} | {package} {version(package)} | {seen} | {seconds:.0f} |", flush=True)
    if arguments.json:
        write_json(arguments.json, rows)


def run(arguments: list[str], folder: Path) -> None:
    """Run this Python in `folder`, with what it prints shown if it fails."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def train_command(out: str, *settings: str) -> list[str]:
    return [*MFPO, "train", "data", "--model", "picturebook", "--out", out, *SETTINGS, *settings]


def lines_of(run: Path) -> list[dict]:
    return [row for _, row in read_rows(run / "metrics.jsonl")]


# ---- sharded training


def two_processes(folder: Path, part: str) -> str:
    """Train under the part's config, killed in the second of three stages; how far that is from one process."""
    if not (folder / "one").exists():
        run(train_command("one", "per_device_train_batch_size=4"), folder)
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config_of(folder, part)), "--num_processes", "2"]
    command = [*launch, *train_command(part, "per_device_train_batch_size=2")]
    kill_after(5, command, folder / f"{part}.partial")
    run(command, folder)
    curves = [lines_of(folder / name) for name in ("one", part)]
    assert [line["step"] for line in curves[0]] == [line["step"] for line in curves[1]]
    pairs = [(one[name], two[name]) for one, two in zip(*curves, strict=True) for name in COMPARED]
    off = max(abs(one - two) / max(1, abs(one)) for one, two in pairs)
    models = [load_model(folder / name / "model").state_dict() for name in ("one", part)]
    weights = max(float((one - models[1][name]).abs().max()) for name, one in models[0].items())
    return (
        f"{len(curves[0])} steps by two processes, killed after 5 and resumed: metrics within {off:.0e} of one "
        f"process's, weights of the model within {weights:.0e}"
    )


def config_of(folder: Path, part: str) -> Path:
    """The shipped config, which is ZeRO-2's, with the part's stage."""
    config = yaml.safe_load((CONFIGS / "deepspeed.yaml").read_text(encoding="utf-8"))
    config["deepspeed_config"]["zero_stage"] = int(part.removeprefix("zero"))
    path = folder / f"{part}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def kill_after(steps: int, arguments: list[str], partial: Path) -> None:
    """Start this Python with the arguments, and kill it and its children once it has written so many lines."""
    log = partial / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=partial.parent,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not log.exists() or log.read_text(encoding="utf-8").count("\n") < steps:
        if process.poll() is not None:
            assert process.stderr
            sys.exit(f"{' '.join(arguments)} failed:\n{process.stderr.read()[-4000:]}")
        time.sleep(0.02)
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.kill()
    process.wait()


# ---- attention


def compiled_attention(folder: Path, part: str) -> str:
    """How far log p is from that of sdpa, forward alone: torch has no backward pass of the kernel for a CPU."""
    model = load_model(WEIGHTS)
    pairs = Pairs(read_dataset(folder / "data"), load_processor(WEIGHTS), cells=TEXT_AND_IMAGE, max_length=999)
    batch = pairs.collate([pairs[row] for row in range(8)], shared=True)
    batch.pop("rows")
    with torch.no_grad():
        expected = sequence_logps(model, dict(batch))
        model.set_attn_implementation({"text_config": part})
        off = float((sequence_logps(model, dict(batch)) - expected).abs().max())
    return f"compiled for the CPU, forward: log p of {len(expected)} answers within {off:.0e} of sdpa's"


# ---- trackers


def tracked(folder: Path, part: str) -> str:
    """Train one run with the tracker; how many of its figures the tracker has."""
    out = f"with-{part}"
    os.environ["TRACKIO_DIR"] = ENVIRONMENT["TRACKIO_DIR"] = str(folder / "trackio")
    run(train_command(out, "per_device_train_batch_size=4", "curriculum=false", f"report_to={part}"), folder)
    shown = READERS[part](folder)
    figures = 0
    for line in lines_of(folder / out):
        for name, value in line.items():
            if name not in ("stage", "step"):
                found = shown[line["step"]][f"train/{name}"]
                assert abs(found - value) <= 1e-6 * max(1, abs(value)), (name, found, value)
                figures += 1
    return f"all {figures} figures of metrics.jsonl are in the files of the tracker"


def read_trackio(folder: Path) -> dict[int, dict[str, float]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (kept,) = trackio.Api().runs("huggingface")
    shown: dict[int, dict[str, float]] = {}
    for row in SQLiteStorage.get_logs("huggingface", kept.name):
        shown.setdefault(int(row["train/global_step"]), {}).update(row)
    return shown


def read_wandb(folder: Path) -> dict[int, dict[str, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.rglob("run-*.wandb")
    shown: dict[int, dict[str, float]] = {}
    for record in map(Record.FromString, records_of(file.read_bytes())):
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "train/global_step" in row:
            shown.setdefault(int(row["train/global_step"]), {}).update(row)
    return shown


def records_of(data: bytes) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log, in blocks of 32 KiB, behind a header of 7 bytes.

    A record is whole (1) or in parts, the last of which is of kind 4; each begins with checksum, length and kind.
    """
    place, record = 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


READERS = {"trackio": read_trackio, "wandb": read_wandb}

# The package of each part, and its check, which says what it saw.
PARTS: dict[str, tuple[str, Callable[[Path, str], str]]] = {
    "zero2": ("deepspeed", two_processes),
    "zero3": ("deepspeed", two_processes),
    "flex_attention": ("torch", compiled_attention),
    "trackio": ("trackio", tracked),
    "wandb": ("wandb", tracked),
}

if __name__ == "__main__":
    main()
