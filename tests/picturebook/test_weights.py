"""The shipped models: what they are, and that they hallucinate for the reason they were made to."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from mfpo.build.pipeline import build
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.demo import build_pairs, score
from mfpo.evaluate.chair import chair
from mfpo.models import model_files
from mfpo.picturebook import FOLDERS, WEIGHTS, model_folder
from mfpo.picturebook.book import draw_book
from mfpo.picturebook.books import CONTEXT
from mfpo.picturebook.pretrain_settings import ContextSettings
from mfpo.picturebook.scenes import PARTNERS, draw_scene, make_scene
from mfpo.picturebook.source import PictureBookSource
from mfpo.study.picturebook import BASE_FILES


@pytest.mark.parametrize("weights", FOLDERS.values(), ids=FOLDERS)
def test_it_is_a_plain_llava_of_a_few_megabytes(weights):
    model = AutoModelForImageTextToText.from_pretrained(weights)
    assert type(model) is LlavaForConditionalGeneration
    assert 2e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 4e6
    assert sum(path.stat().st_size for path in weights.rglob("*")) <= 8e6
    towers = [name for name in load_file(weights / "model.safetensors") if name.startswith("vision_tower.")]
    # As in every LLaVA on the Hub; vLLM loads no others.
    assert towers
    assert all(name.startswith("vision_tower.vision_model.") for name in towers)
    assert not [path for path in weights.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".py")]


def test_kept_scores_are_of_these_weights(tmp_path):
    folder = shutil.copytree(WEIGHTS, tmp_path / "weights")
    tensors = load_file(folder / "model.safetensors")
    before = {name.replace("vision_tower.vision_model.", "vision_tower."): value for name, value in tensors.items()}
    assert before.keys() != tensors.keys()
    save_file(before, folder / "model.safetensors", metadata={"format": "pt"})
    assert model_files(folder) == BASE_FILES, "the base model is another; set BASE_FILES to model_files(WEIGHTS)"


def test_plain_transformers_describes_a_scene():
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=torch.float32)
    scene = make_scene(200_000_001)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in this picture?"}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
    inputs = processor(text=prompt, images=[draw_scene(scene)[0]], return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=100)
    text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert scene.theme in text


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The figures of README.md on fewer scenes, the first 80 of the 500."""
    folder = tmp_path_factory.mktemp("scored")
    draw_book(folder / "scenes", count=80)
    build_pairs(folder / "pairs", 4, 0, "heldout")
    return folder, score(WEIGHTS, "base", scenes=folder / "scenes", pairs=folder / "pairs", answers=folder)


def test_it_hallucinates_as_much_as_real_models_and_sees(scored):
    _, figures = scored
    assert 40 <= figures["chair_s"] <= 60
    assert 10 <= figures["chair_i"] <= 25
    assert figures["cover"] >= 60
    assert figures["existence_accuracy"] >= 75
    assert figures["image_dependence"] > 0


def test_its_mistakes_are_absent_partners(scored):
    folder, _ = scored
    result = chair(folder / "base_captions.jsonl", folder / "scenes/annotations.jsonl")
    mistakes = [(name, detail) for detail in result.captions for name in detail.hallucinated]
    partners = [name for name, detail in mistakes if name in {PARTNERS.get(kind) for kind in detail.truth}]
    assert len(partners) / len(mistakes) > 0.75


def test_the_tokenizer_gives_every_text_back():
    tokenizer = AutoProcessor.from_pretrained(WEIGHTS).tokenizer
    for text in ("A red car is at the bottom left.", "Ein Hund, größer als 3 Katzen: 狗!", "tabs\tand\n\nlines"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_weights_say_how_they_were_made():
    log = json.loads((WEIGHTS / "pretraining.json").read_text())
    assert log["tower"][-1]["foreground_accuracy"] > 0.95
    assert json.loads((WEIGHTS / "made_by.json").read_text())["settings"]["seed"] == 0


def test_the_second_books_model_was_made_with_the_defaults():
    folder = model_folder(CONTEXT)
    made_by = json.loads((folder / "made_by.json").read_text())
    assert (made_by["book"], made_by["settings"]) == (CONTEXT, asdict(ContextSettings()))


def test_the_second_books_model_hallucinates_as_much_as_real_models_and_reads_the_context(tmp_path):
    """On fair scenes, of which it was shown few: the figures of docs/picturebook.md on fewer of them."""
    draw_book(tmp_path / "scenes", count=80, book=CONTEXT)
    source = PictureBookSource(6, split="heldout", book=CONTEXT)
    build(source, tmp_path / "noised", BuildSettings(corruption="global"), DatasetRegions())
    figures = score(
        model_folder(CONTEXT), "context", scenes=tmp_path / "scenes", pairs=tmp_path / "noised", answers=tmp_path
    )
    assert 40 <= figures["chair_s"] <= 65
    assert 17 <= figures["chair_i"] <= 31
    assert 50 <= figures["cover"] <= 65
    assert 75 <= figures["existence_accuracy"] <= 85
    # The first book's model loses 14.5 nats of its captions when the whole image is noised.
    assert 0 < figures["image_dependence"] < 5
