"""What `build` writes trains in TRL as it is."""

from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

from mfpo.build.pipeline import build_into
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.picturebook.source import PictureBookSource


def test_one_step_of_dpo(tiny_llava: Path, tmp_path: Path) -> None:
    build_into(PictureBookSource(4), tmp_path / "data", BuildSettings(), DatasetRegions())
    model = AutoModelForImageTextToText.from_pretrained(tiny_llava)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = DPOTrainer(
        model,
        args=DPOConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=1,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            max_length=None,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache")),
        processing_class=AutoProcessor.from_pretrained(tiny_llava),
    )
    loss = trainer.train().training_loss
    # Policy and reference are equal before the first step, so DPO's loss is log 2.
    assert abs(loss - torch.log(torch.tensor(2.0)).item()) < 1e-3
    assert any(not torch.equal(before[name], weight) for name, weight in trainer.model.named_parameters())
