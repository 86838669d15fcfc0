"""The commands: nothing but parsing and calls."""

import errno
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, NoReturn

# Weights come from folders or are asked for by name; progress bars are ours.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import typer
from rich.console import Console
from rich.table import Table

from mfpo.cli_build import ROWS_SET_ASIDE, build
from mfpo.cli_eval import eval_app
from mfpo.cli_probe import probe_app
from mfpo.cli_study import reproduce
from mfpo.errors import MfpoError, SettingError, brief, one_line
from mfpo.settings import read_settings

app = typer.Typer(
    help="Make vision-language models hallucinate less, by Modality-Fair Preference Optimization.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
book_app = typer.Typer(help="The picture book: drawn scenes and the tiny LLaVA trained on them.", no_args_is_help=True)
app.add_typer(eval_app, name="eval")
app.add_typer(probe_app, name="probe")
app.add_typer(book_app, name="picturebook")

console = Console(markup=False, emoji=False, highlight=False)  # a folder may be called v1[/x]

Data = Annotated[Path, typer.Argument(help="Folder written by `mfpo build` or `mfpo rank`.")]
Out = Annotated[Path, typer.Option(help="Folder to write; it must not exist.")]
Model = Annotated[str, typer.Option(help="Folder of a model or adapter, a name on the hub, or `picturebook`.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings; `mfpo settings STAGE` lists them.")
]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings; KEY=VALUE goes before it.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the log, and tracebacks.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    if context.invoked_subcommand is None:
        console.print(context.get_help())


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of data, training and held-out scenes.")] = 0,
) -> None:
    """Go the whole way on the picture book, in minutes on a CPU: build, rank, train DPO and MFPO, score, report.

    Example: mfpo demo --out runs/demo
    """
    from mfpo.demo import DemoSettings
    from mfpo.demo import demo as run

    run(out, DemoSettings(seed=seed), console=console)


app.command()(build)


@app.command()
def inspect(data: Data) -> None:
    """Write one page that shows what was built: images, regions, rejected images, answers with their keywords.

    Example: mfpo inspect data/photos
    """
    from mfpo.report import inspect as run

    console.print(f"open {run(data)}")


@app.command()
def rank(data: Data, model: Model, out: Out, overrides: Overrides = None) -> None:
    """Rank records from easy to hard by the model's entropy (paper, 3.3).

    Example: mfpo rank data/photos --model llava-hf/llava-1.5-7b-hf --out data/ranked
    """
    from mfpo.align.curriculum import RankSettings
    from mfpo.align.curriculum import rank as run
    from mfpo.picturebook.model import model_folder

    summary = run(data, model_folder(model), out, read_settings(RankSettings, None, overrides or []))
    for level, figures in summary["levels"].items():
        console.print(f"{level}: {figures['records']} records, mean entropy {figures['mean_entropy']:.2f} nats")


@app.command()
def train(
    data: Data,
    model: Model,
    out: Out,
    method: Annotated[str | None, typer.Option(help="mfpo, dpo, mdpo, ddpo, ha-dpo, povid, halva, eos, hacl")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Train by preference (paper, 3.2 and 3.3). `mfpo settings train` lists every KEY=VALUE.

    Example: mfpo train data/ranked --model llava-hf/llava-1.5-7b-hf --out runs/mfpo lora_rank=128
    """
    from mfpo.align.train_settings import TrainSettings

    settings = read_settings(TrainSettings, config, overrides or [], method=method)  # told before the long imports
    from mfpo.align.processes import processes
    from mfpo.align.trainer import train as run
    from mfpo.picturebook.model import model_folder

    run(data, model_folder(model), out, settings)
    if processes().is_main_process:
        console.print(f"{out / 'model'} is trained; see it with `mfpo report {out}`")


@app.command()
def answer(
    questions: Annotated[Path, typer.Argument(help="JSONL or JSON of LLaVA, POPE, AMBER or MMHal-Bench.")],
    model: Annotated[str, typer.Option(help="As in `train`; with --endpoint the name that the endpoint knows.")],
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    endpoint: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible endpoint to ask.")] = None,
    engine: Annotated[str | None, typer.Option(help="transformers (the default) or vllm, for a local model.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Questions at a time; 32 by default.", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of the longest answer.", min=1)] = 512,
    concurrency: Annotated[int, typer.Option(help="Requests to the endpoint at a time.", min=1)] = 8,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask the endpoint what failed again.")] = False,
    decode: Annotated[str, typer.Option(help="greedy, vcd or opera, whose settings KEY=VALUE are.")] = "greedy",
    overrides: Overrides = None,
) -> None:
    """Ask a model questions about images. Exit status 3 says that questions failed at the endpoint.

    Example: mfpo answer questions.jsonl --model runs/mfpo/model --images photos --out answers.jsonl
    """
    if (endpoint or engine == "vllm") and (decode != "greedy" or overrides):
        raise SettingError(
            "--decode and its settings are for --engine transformers; endpoints and vLLM answer greedily"
        )
    if batch_size and (endpoint or engine == "vllm"):
        raise SettingError("--batch-size is for --engine transformers; endpoints and vLLM form batches themselves")
    if endpoint and engine:
        raise SettingError(f"--engine {engine} is for a local model, and --endpoint asks another machine; give one")
    if endpoint:
        _answer_by_endpoint(questions, endpoint, model, images, out, max_new_tokens, concurrency, retry_failed)
    from mfpo.picturebook.model import model_folder

    if retry_failed:
        raise SettingError("--retry-failed asks an endpoint again; a local model fails at none, so leave it out")
    if engine == "vllm":
        from mfpo.evaluate.vllm_engine import answer_by_vllm

        count = answer_by_vllm(questions, model_folder(model), images, out, name=model, max_new_tokens=max_new_tokens)
    elif engine in (None, "transformers"):
        from mfpo.evaluate.generate import DECODERS
        from mfpo.evaluate.generate import answer as run

        if decode not in DECODERS:
            raise SettingError(f"no decoding is named {brief(decode)}; there are {', '.join(DECODERS)}")
        chosen: Any = read_settings(DECODERS[decode].settings, None, overrides or [])
        count = run(
            questions,
            model_folder(model),
            images,
            out,
            name=model,
            strategy=decode,
            settings=chosen,
            batch_size=batch_size or 32,
            max_new_tokens=max_new_tokens,
        )
    else:
        raise SettingError(f"no engine is named {brief(engine)}; give --engine transformers or vllm")
    console.print(f"{out}: {count} answers")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder written by `mfpo demo` or `mfpo train`.")]) -> None:
    """Write report.html into a run folder: table, curves, examples, all in one file.

    Example: mfpo report runs/mfpo
    """
    from mfpo.report import write_report

    console.print(f"open {write_report(run)}")


@app.command()
def merge(
    run: Annotated[
        Path, typer.Argument(help="Folder written by `mfpo train` with lora_rank above 0, or an adapter's.")
    ],
    out: Out,
) -> None:
    """Merge an adapter, that of a run or another, into its base model.

    Example: mfpo merge runs/mfpo --out models/llava-mfpo
    """
    import torch

    from mfpo.folders import whole_folder
    from mfpo.models import in_precision, load_model, load_processor, stored_dtype

    adapter = run if (run / "adapter_config.json").exists() else run / "model"
    if not (adapter / "adapter_config.json").exists():
        raise MfpoError(f"{adapter}: no adapter there to merge; lora_rank=0 trains the model itself")
    # Added up in float32 and rounded once, to the precision of the base.
    model = in_precision(load_model(adapter, dtype=torch.float32), stored_dtype(adapter))
    with whole_folder(out, {"command": "merge", "run": run}) as folder:
        model.save_pretrained(folder)
        load_processor(adapter).save_pretrained(folder)
    console.print(f"{out} holds the merged model")


@app.command("settings")
def show_settings(
    stage: Annotated[str, typer.Argument(help="build, rank, train, vcd, opera, judge or pretrain.")],
) -> None:
    """List the settings of a stage, with their defaults.

    Example: mfpo settings train
    """
    cls = _settings_class(stage)
    shown = Table("setting", "default", "what it does")
    for field in fields(cls):
        default = "" if field.default is MISSING else "null" if field.default is None else str(field.default)
        shown.add_row(field.name, default, field.metadata["help"])
    console.print(shown)


app.command()(reproduce)


@book_app.command("pretrain")
def picturebook_pretrain(out: Out, config: Config = None, overrides: Overrides = None) -> None:
    """Make the shipped weights again from a seed; about half an hour on two cores.

    Example: mfpo picturebook pretrain --out runs/picturebook seed=0
    """
    from mfpo.picturebook.pretrain import PretrainSettings, pretrain

    pretrain(out, read_settings(PretrainSettings, config, overrides or []))
    console.print(f"{out} holds the model")


@book_app.command("draw")
def picturebook_draw(
    out: Out,
    count: Annotated[int, typer.Option(help="Number of scenes.", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.")] = 0,
    split: Annotated[str, typer.Option(help="heldout or validation.")] = "heldout",
) -> None:
    """Draw held-out scenes with their truth and questions, to score a model on.

    Example: mfpo picturebook draw --count 500 --out data/heldout
    """
    from mfpo.picturebook.book import draw_book

    draw_book(out, count=count, seed=seed, split=split)
    console.print(f"{out} holds {count} scenes, annotations.jsonl, captions.jsonl and existence.jsonl")


def main() -> None:
    """Run a command. A user's mistake is one line on stderr and exit status 1; -v shows the traceback."""
    warnings.filterwarnings("ignore", category=RuntimeWarning, message="Image size")  # PIL's on bombs, which we refuse
    # What peft asks of transformers, as plain peft does too.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing")
    try:
        app()
    except MfpoError as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        _complain(f"error: {one_line(error)}")
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _complain(f"error: the disk is full ({error.strerror or error}); make room and give the same command again")
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            _complain("stopped" + _kept(sys.argv[1:]))
        raise


def _kept(arguments: Iterable[str]) -> str:
    """What a command that was stopped has kept for the next time, if anything."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    kept = {
        "build": "its whole shards",
        "rank": "the entropies that it measured",
        "train": "its last checkpoint",
        "answer": "the answers so far",
        "eval": "a judge's verdicts so far",
        "demo": "its whole parts",
        "reproduce": "its whole parts",
    }
    return f"; the same command finds {kept[command]} again" if command in kept else ""


def _complain(message: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(30)  # a launcher ends all processes when one fails: what the first one says too is said once.
    Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False).print(message)


def _answer_by_endpoint(
    questions: Path,
    endpoint: str,
    model: str,
    images: Path,
    out: Path,
    max_new_tokens: int,
    concurrency: int,
    retry_failed: bool,
) -> NoReturn:
    """Ask an endpoint, say how it went, and end."""
    from mfpo.evaluate.endpoint import answer_by_endpoint

    answered = answer_by_endpoint(
        questions,
        endpoint,
        model,
        images,
        out,
        max_new_tokens=max_new_tokens,
        concurrency=concurrency,
        retry_failed=retry_failed,
    )
    hint = "; --retry-failed asks them again" if answered.failed else ""
    console.print(f"{out}: {answered.questions} questions, of which {answered.failed} failed{hint}")
    raise typer.Exit(ROWS_SET_ASIDE if answered.failed else 0)


def _settings_class(stage: str) -> Any:
    from mfpo.align.curriculum import RankSettings
    from mfpo.align.train_settings import TrainSettings
    from mfpo.build.pipeline import CommandSettings
    from mfpo.evaluate.generate import DECODERS
    from mfpo.evaluate.judge import JudgeSettings
    from mfpo.picturebook.pretrain import PretrainSettings

    classes: dict[str, Any] = {"build": CommandSettings, "rank": RankSettings, "train": TrainSettings}
    classes |= {name: decoder.settings for name, decoder in DECODERS.items() if name != "greedy"}  # has no settings
    classes |= {"judge": JudgeSettings, "pretrain": PretrainSettings}
    if stage not in classes:
        raise SettingError(f"no stage is named {brief(stage)}; there are {', '.join(classes)}")
    return classes[stage]


if __name__ == "__main__":
    main()
