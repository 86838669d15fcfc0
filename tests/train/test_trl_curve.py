"""`mfpo train --method dpo` against TRL's DPOTrainer: the same loss at every step."""

import json
from pathlib import Path

import pytest
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings

STEPS = 20
RATE = 1e-3


def trl_losses(model: Path, data: Path, tmp_path: Path) -> list[float]:
    policy, reference = (AutoModelForImageTextToText.from_pretrained(model) for _ in range(2))
    policy.model.vision_tower.requires_grad_(False)
    trainer = DPOTrainer(
        policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=14,
            num_train_epochs=STEPS,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            beta=0.1,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=load_dataset(str(data), split="train", cache_dir=str(tmp_path / "cache")),
        processing_class=AutoProcessor.from_pretrained(model),
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_dpo_has_trls_loss_curve(tiny_llava: Path, preference_data: Path, tmp_path: Path) -> None:
    # All 14 records are one batch, so that the order of records is no question.
    settings = TrainSettings(
        method="dpo", batch_size=14, epochs=STEPS, learning_rate=RATE, logging_steps=1, save_steps=STEPS
    )
    train(preference_data, tiny_llava, tmp_path / "ours", settings)
    ours = [json.loads(line)["loss"] for line in (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()]
    theirs = trl_losses(tiny_llava, preference_data, tmp_path)
    assert len(ours) == len(theirs) == STEPS
    assert ours[-1] < 0.8 * ours[0], "the curve should fall, or it shows nothing"
    assert ours == pytest.approx(theirs, abs=1e-4)
