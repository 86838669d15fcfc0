"""What a dry run says against runs that took place, and its memory against what torch allocates."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch.profiler import profile

from fixtures.families import llava, ragged_rows, through
from fixtures.runs import PLAIN, STAGED, metrics_of
from mfpo.cli import main
from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError
from mfpo.logprobs.sequences import collate, sequence_logps
from mfpo.models import load_model, shape_of
from mfpo.processors import load_processor
from mfpo.train.dry_run import Part, dry_run, parameters_by_part
from mfpo.train.memory import estimate
from mfpo.train.objectives import OBJECTIVES
from mfpo.train.policy import lora_targets, make_trainable
from mfpo.train.settings import TrainSettings


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_steps_and_tokens_are_those_of_the_run_and_nothing_is_written(plain_run, preference_data, tiny_llava, tmp_path):
    before = files(preference_data)
    found = dry_run(preference_data, tiny_llava, tmp_path / "out", TrainSettings(**PLAIN))
    first, *_, last = metrics_of(plain_run)
    assert [(stage.name, stage.records, stage.steps) for stage in found.stages] == [("all", 14, last["step"])]
    assert found.sequences == 8
    assert found.tokens_saved == pytest.approx(first["tokens/saved"], abs=1e-9)
    # One prompt of a record is shared by its two answers.
    rows = [row for row in found.batch if row.sequence != "prompt"]
    assert found.tokens == sum(row.tokens for row in found.batch) > sum(row.tokens for row in rows)
    assert files(preference_data) == before
    assert not list(tmp_path.iterdir())


def test_steps_of_stages(staged_run, ranked, tiny_llava, tmp_path):
    found = dry_run(ranked, tiny_llava, tmp_path / "out", TrainSettings(**STAGED))
    lines = metrics_of(staged_run)
    assert [(stage.name, stage.steps) for stage in found.stages] == [
        (name, sum(line["stage"] == name for line in lines)) for name in ("easy", "medium", "hard")
    ]
    firsts = {line["stage"]: line for line in reversed(lines)}
    easy, medium, hard = (firsts[name]["tokens/saved"] for name in ("easy", "medium", "hard"))
    assert min(easy, medium, hard) < found.tokens_saved < max(easy, medium, hard)


def test_the_reference_is_kept_or_to_be_computed(plain_run, preference_data, tiny_llava, tmp_path):
    """Of held-out pairs with the cells of both margins, whatever the method."""
    bare = tmp_path / "bare"
    shutil.copytree(preference_data, bare, ignore=shutil.ignore_patterns(".*"))
    (kept,), new = (
        dry_run(data, tiny_llava, tmp_path / "out", TrainSettings(**PLAIN, eval=held_out)).reference
        for data, held_out in ((preference_data, None), (bare, str(preference_data)))
    )
    assert (kept.answers, kept.kept, kept.file.exists()) == (0, 28, True)
    own, held_out = new
    assert (own.answers, own.kept, own.file.exists()) == (28, 0, False)
    assert (held_out.answers + held_out.kept, held_out.file) == (42, kept.file)
    assert held_out.kept >= 28


def test_the_first_batch_is_shown_as_the_model_reads_it(preference_data, tiny_llava, tmp_path):
    found = dry_run(preference_data, tiny_llava, tmp_path / "out", TrainSettings(batch_size=2, curriculum=False))
    texts = {record["id"]: record for record in read_dataset(preference_data)}
    assert [row.sequence for row in found.batch] == ["prompt", "chosen", "rejected", "rejected_image"] * 2
    for row in found.batch:
        record = texts[row.record]
        if row.sequence == "prompt":
            assert row.text == "USER: [16 x <image>]\nWhat is there? ASSISTANT:"
        else:
            name = "rejected" if row.sequence == "rejected" else "chosen"
            assert row.text == " " + record[name][0]["content"] + "</s>"
    short = dry_run(
        preference_data, tiny_llava, tmp_path / "out", TrainSettings(**PLAIN, max_length=found.batch[0].tokens + 5)
    )
    assert any(row.tokens == 5 and "more tokens are cut" in row.text for row in short.batch)


def test_adapters_are_those_of_the_run(lora_run, preference_data, tiny_llava, tmp_path):
    found = dry_run(preference_data, tiny_llava, tmp_path / "out", TrainSettings(**PLAIN, lora_rank=4))
    with safe_open(lora_run / "model" / "adapter_model.safetensors", "pt") as saved:
        trained = sum(saved.get_tensor(name).numel() for name in saved.keys())  # noqa: SIM118, it is no mapping
    assert found.parameters["adapters"] == Part(trained=trained)
    base = sum(weight.numel() for weight in load_model(tiny_llava).parameters())
    assert sum(part.frozen for part in found.parameters.values()) == base
    assert [part.trained for name, part in found.parameters.items() if name != "adapters"] == [0, 0, 0]


def test_parts_of_every_family(any_family):
    settings = TrainSettings()
    shape = shape_of(any_family.model)
    parts = parameters_by_part(make_trainable(shape, settings, targets=[], adapter=None))
    policy = make_trainable(copy.deepcopy(any_family.model), settings, targets=[], adapter=None)
    trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    assert parts["vision tower"].trained == 0 < parts["vision tower"].frozen
    assert parts["projector"].frozen == 0 < parts["projector"].trained
    assert sum(part.trained for part in parts.values()) == trained
    language = {*policy.get_decoder().parameters(), *policy.get_output_embeddings().parameters()}
    language |= set(policy.get_input_embeddings().parameters())
    assert parts["language model"] == Part(trained=sum(weight.numel() for weight in language))


def test_any_method_and_a_model_in_memory(counter_data, tiny_llava, tmp_path):
    dataset = read_dataset(counter_data)
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    second = set()
    for name in OBJECTIVES:
        method = OBJECTIVES[name]
        data = dataset
        if method.corruption:
            kinds = [record["corruption"] | {"kind": method.corruption} for record in dataset]
            data = dataset.remove_columns("corruption").add_column("corruption", kinds)
        settings = TrainSettings(method=name, batch_size=2, curriculum=False)
        found = dry_run(data, model, tmp_path / "out", settings, processor=processor)
        assert found.sequences == 2 * len(method.cells)
        if found.memory["on a GPU"].reference:
            second.add(name)
    assert second == {"povid", "halva", "chip"}
    assert not any(weight.is_meta for weight in model.parameters())


def test_4_bits(preference_data, tiny_llava, tmp_path):
    whole = TrainSettings(**PLAIN, lora_rank=4)
    found, in_4_bits = (
        dry_run(preference_data, tiny_llava, tmp_path / "out", settings).memory
        for settings in (whole, replace(whole, quantize_4bit=True, optim="adamw_8bit"))
    )
    model = load_model(tiny_llava)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    count = sum(m.weight.numel() for m in linear)
    for where, size in {"on a GPU": 2, "on this CPU": 4}.items():
        saved = count * (size - (0.5 + 1 / 64 + 1 / 4096))
        assert found[where].weights - in_4_bits[where].weights == pytest.approx(saved)
        assert in_4_bits[where].optimizer == found[where].optimizer / 4


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"lora_rank": 4}], ids=str)
def test_memory_is_what_torch_allocates(options, bf16):
    """The peak of a step to 12 %, by the events of torch's allocator; weights and AdamW's state exactly."""
    settings = TrainSettings(**options).resolved()
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8}
    model, processor = llava(**shape)
    policy = make_trainable(model, settings, targets=lora_targets(model, settings), adapter=None).train()
    for weight in policy.parameters():
        if bf16 and settings.lora_rank and not weight.requires_grad:
            weight.data = weight.data.bfloat16()
    if settings.gradient_checkpointing:
        policy.gradient_checkpointing_enable()
    batch = collate(ragged_rows(through(processor)), 0)
    optimizer = torch.optim.AdamW([w for w in policy.parameters() if w.requires_grad], foreach=False)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logps = sequence_logps(policy, dict(batch))
        logps.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    weights = sum(weight.nbytes for weight in policy.parameters())
    states = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim)
    peak = weights + states + int(torch.tensor(changes).cumsum(0).max())
    found = estimate(policy, batch, settings, bf16=bf16)
    assert (found.weights, found.optimizer) == (weights, states)
    assert found.peak == pytest.approx(peak, rel=0.12)
    assert found.activations > 0.1 * peak or settings.gradient_checkpointing


def test_the_command(ranked, tiny_llava, tmp_path, monkeypatch, capsys):
    command = ["mfpo", "train", str(ranked), "--model", str(tiny_llava), "--out", str(tmp_path / "out"), "--dry-run"]
    monkeypatch.setattr("sys.argv", [*command, "batch_size=1"])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().out
    assert not stopped.value.code
    for text in ("language model", "easy", "tokens saved by shared prefixes", "peak", "[16 x <image>]", "« I"):
        assert text in shown
    assert not (tmp_path / "out").exists()


def test_a_wrong_out_or_template_is_told(preference_data, tiny_llava, tmp_path):
    with pytest.raises(MfpoError, match="exists already"):
        dry_run(preference_data, tiny_llava, tmp_path, TrainSettings(**PLAIN))
    with pytest.raises(MfpoError, match="held"):
        dry_run(preference_data, tiny_llava, tmp_path / "out", TrainSettings(**PLAIN, eval=str(tmp_path / "held")))
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    processor.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(MfpoError, match="template"):
        dry_run(preference_data, model, tmp_path / "out", TrainSettings(**PLAIN), processor=processor)
