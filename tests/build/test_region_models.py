"""Segmenters with tiny random models of the real classes, against transformers' own way for one image."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
    Sam2Config,
    Sam2Model,
    Sam3Config,
    Sam3Model,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
    SamProcessor,
    ViTImageProcessorPil,
)

from mfpo.build.regions import Search, open_segmenter, vision
from mfpo.build.regions.detectors import load_detector
from mfpo.build.regions.sam import Sam
from mfpo.build.settings import RegionSettings
from mfpo.errors import MfpoError, RecordError
from mfpo.masks import Mask, decode_mask
from mfpo.records import EncodedImage, Keyword, Origin, Region, new_record

# Height and width: one lying, one standing, one square, and one that is smaller than the models' squares.
SIZES = [(48, 80), (90, 50), (64, 64), (20, 30)]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["black", "cat", "mat", "dog", "old", "clock", "a", "st", "bernard"]
# Whatever its size, so that random masks count.
ANY_SIZE = {"smallest_region": 0.0, "largest_region": 1.0}


def clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """CLIP's own tokenizer without merges: a token a letter; as in the published ones, the end has the highest id."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], pad_token=pad_token)


def clip_text(positions: int, **more: Any) -> dict[str, Any]:
    return {**SMALL, "vocab_size": 514, "max_position_embeddings": positions, "eos_token_id": 2, **more}


def save(model: Any, folder: Path, *parts: Any) -> str:
    """Save a model with large random weights, so that each pixel and each word is seen in what it gives."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for part in (model, *parts):
        part.save_pretrained(folder)
    return str(folder)


def clipseg(folder: Path) -> str:
    config = CLIPSegConfig(
        text_config=clip_text(24),
        vision_config={**SMALL, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        projection_dim=32,
        extract_layers=[0, 1, 2],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return save(CLIPSegForImageSegmentation(config), folder, processor, clip_tokenizer("<|endoftext|>"))


def sam(folder: Path) -> str:
    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
            "mlp_dim": 64,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    processor = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return save(SamModel(config), folder, processor)


def sam2(folder: Path) -> str:
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [64, 64],
        "window_positional_embedding_background_size": [4, 4],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [3],
    }
    config = Sam2Config(
        vision_config={
            "backbone_config": hiera,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    return save(Sam2Model(config), folder, ViTImageProcessorPil(size={"height": 64, "width": 64}))


def grounding_dino(folder: Path) -> str:
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": 64,
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 4,
            "out_indices": [2, 3, 4],
        },
        text_config={**SMALL, "model_type": "bert", "vocab_size": 1100, "max_position_embeddings": 256},
        num_queries=12,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    # The model knows the ids of BERT's marks by heart.
    places = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
    places |= {200 + i: word for i, word in enumerate(WORDS)}
    vocabulary = {places.get(i, f"[unused{i}]"): i for i in range(1100)}
    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 192})
    return save(GroundingDinoForObjectDetection(config), folder, processor, BertTokenizer(vocab=vocabulary))


def owlv2(folder: Path) -> str:
    config = Owlv2Config(
        text_config=clip_text(24, pad_token_id=0),
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    processor = Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
    return save(Owlv2ForObjectDetection(config), folder, processor, clip_tokenizer("!"))


def sam3(folder: Path) -> str:
    part = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    tower = {**SMALL, "image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1]}
    config = Sam3Config(
        vision_config={
            "backbone_config": {**tower, "model_type": "sam3_vit_model", "pretrain_image_size": 28},
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config=clip_text(32, model_type="clip_text_model", projection_dim=32),
        geometry_encoder_config=part,
        detr_encoder_config=part,
        detr_decoder_config={**part, "num_queries": 6},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    processor = ViTImageProcessorPil(size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return save(Sam3Model(config), folder, processor, clip_tokenizer("<|endoftext|>"))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU would compute in bfloat16, which no tolerance here allows for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


MAKERS: list[Callable[[Path], str]] = [clipseg, sam, sam2, grounding_dino, owlv2, sam3]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder with each kind of model."""
    return {maker.__name__: maker(tmp_path_factory.mktemp(maker.__name__)) for maker in MAKERS}


CHOICES = {
    "clipseg": "clipseg={clipseg}",
    "sam3": "sam3={sam3}",
    "grounding dino, sam": "grounded-sam={grounding_dino},{sam}",
    "grounding dino, sam 2": "grounded-sam={grounding_dino},{sam2}",
    "owlv2, sam": "grounded-sam={owlv2},{sam}",
}
each_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())


def search_for(number: int, *texts: str, image: int = 0) -> Search:
    """A search for keywords in random pixels of one of the sizes."""
    height, width = SIZES[number % len(SIZES)]
    # Large patches of one colour, as a picture has.
    patches = np.random.default_rng(number).integers(0, 256, (-(-height // 10), -(-width // 10), 3), dtype=np.uint8)
    pixels = patches.repeat(10, axis=0).repeat(10, axis=1)[:height, :width]
    record = new_record(
        id=f"r{number}",
        images=[EncodedImage(bytes=b"", path=None)],
        question="What is there?",
        chosen="A cat.",
        rejected="A dog.",
        source=Origin(dataset="test", row=number),
    )
    return Search(record, image, pixels, [Keyword(text=text, score=1.0) for text in texts])


def some_searches() -> list[Search]:
    """Six images of four sizes, with no, some, and more keywords than fit into one prompt."""
    many = [f"{word} {other}" for word in WORDS[:5] for other in WORDS[1:5]]
    texts = [("black cat", "mat"), ("dog",), ("old clock", "cat", "dog"), (), ("mat", "old cat"), many]
    return [search_for(number, *some, image=number) for number, some in enumerate(texts)]


def masks_of(regions: list[Region] | RecordError) -> dict[str, Mask]:
    assert not isinstance(regions, RecordError)
    return {region["keyword"]: decode_mask(region["mask"]) for region in regions}


@each_choice
def test_a_batch_gives_what_its_images_give_alone(choice: str, models: dict[str, str]) -> None:
    settings = {**ANY_SIZE, "box_threshold": 0.2, "text_threshold": 0.2}
    searches = some_searches()
    together = open_segmenter(choice.format(**models), RegionSettings(**settings, region_batch=4))(searches)
    segment = open_segmenter(choice.format(**models), RegionSettings(**settings, region_batch=1))
    shares = []
    for search, regions in zip(searches, together, strict=True):
        (alone,) = segment([search])
        expected, given = masks_of(alone), masks_of(regions)
        texts = [keyword["text"] for keyword in search.keywords]
        assert [text for text in texts if text in given] == list(given) == list(expected)
        for one, other in zip(alone, regions, strict=True):
            assert other["image"] == search.number
            assert 0 <= other["score"] <= 1
            assert other["score"] == pytest.approx(one["score"], abs=1e-4)
            mask = given[other["keyword"]]
            assert mask.shape == search.pixels.shape[:2]
            assert (mask != expected[other["keyword"]]).mean() < 0.002  # pixels just at the threshold
            shares.append(mask.mean())
    # Or the test could see nothing.
    assert len(shares) > 4
    assert any(0.02 < share < 0.98 for share in shares)


@each_choice
def test_a_higher_threshold_finds_less(choice: str, models: dict[str, str]) -> None:
    searches = some_searches()[:3]

    def area(**thresholds: float) -> float:
        settings = RegionSettings(**ANY_SIZE, **{"box_threshold": 0.0, "text_threshold": 0.0, **thresholds})
        results = open_segmenter(choice.format(**models), settings)(searches)
        return sum(float(mask.mean()) for regions in results for mask in masks_of(regions).values())

    assert area(mask_threshold=0.0) == 6.0  # all pixels for each of the six keywords
    assert 6.0 > area(mask_threshold=0.5) > area(mask_threshold=0.9) >= 0
    assert area(mask_threshold=1.0) == 0
    if not choice.startswith("clipseg"):
        assert area(box_threshold=1.0) == 0
    if "grounding_dino" in choice:
        assert area(text_threshold=1.0) == 0


def test_of_sam_the_vision_tower_sees_each_image_once(models: dict[str, str]) -> None:
    settings = RegionSettings(**ANY_SIZE, box_threshold=0.0, text_threshold=0.0, region_batch=2)
    segment: Any = open_segmenter(CHOICES["grounding dino, sam"].format(**models), settings)
    seen = []
    tower = segment._sam._model.vision_encoder
    tower.register_forward_pre_hook(lambda _, pixels: seen.append(len(pixels[0])))
    segment(some_searches())
    assert seen == [2, 2, 1]  # of the six images one has no keywords


def test_clipseg_as_for_one_image(models: dict[str, str]) -> None:
    search = search_for(1, "black cat")
    (regions,) = open_segmenter(f"clipseg={models['clipseg']}", RegionSettings(**ANY_SIZE))([search])
    model = CLIPSegForImageSegmentation.from_pretrained(models["clipseg"]).eval()
    pixels = ViTImageProcessorPil.from_pretrained(models["clipseg"])(
        Image.fromarray(search.pixels), return_tensors="pt"
    )
    text = CLIPTokenizer.from_pretrained(models["clipseg"])("black cat", return_tensors="pt")
    with torch.no_grad():
        logits = model(**text, **pixels).logits
    resized = torch.nn.functional.interpolate(logits[:, None], search.pixels.shape[:2], mode="bilinear")
    probability = torch.sigmoid(resized[0, 0])
    expected = (probability > 0.5).numpy()
    assert 0.02 < expected.mean() < 0.98
    assert (masks_of(regions)["black cat"] != expected).mean() < 0.002
    assert isinstance(regions, list)
    assert regions[0]["score"] == pytest.approx(float(probability[probability > 0.5].mean()), abs=1e-4)


BOXES = [[5.0, 8.0, 40.0, 30.0], [20.0, 2.0, 48.0, 44.0], [0.0, 0.0, 50.0, 90.0]]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_sam_as_for_one_image(number: int, models: dict[str, str]) -> None:
    search = search_for(number)
    sam = Sam(models["sam"])
    with torch.no_grad():
        (image,) = sam.embed([search])
        union = sam.union(image, torch.tensor(BOXES))
    processor = SamProcessor(SamImageProcessorPil.from_pretrained(models["sam"]))
    model = SamModel.from_pretrained(models["sam"]).eval()
    inputs = processor(Image.fromarray(search.pixels), input_boxes=[BOXES], return_tensors="pt")
    with torch.no_grad():
        masks = model(**inputs, multimask_output=False).pred_masks
    (expected,) = processor.image_processor.post_process_masks(
        masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    assert expected.shape == (3, 1, *search.pixels.shape[:2])
    assert 0.02 < expected.float().mean() < 0.98
    assert (union != expected.any(dim=0)[0]).float().mean() < 0.002


def test_sam_2_as_for_one_image(models: dict[str, str]) -> None:
    search = search_for(0)
    sam = Sam(models["sam2"])
    with torch.no_grad():
        (image,) = sam.embed([search])
        union = sam.union(image, torch.tensor(BOXES))
    height, width = search.pixels.shape[:2]
    square = Image.fromarray(search.pixels).resize((64, 64), Image.Resampling.BILINEAR)
    pixels = torch.tensor(np.asarray(square) / 255.0).permute(2, 0, 1)[None]
    pixels = ((pixels - 0.5) / 0.5).float()  # the mean and deviation in the tiny folder
    boxes = torch.tensor(
        [[[x1 * 64 / width, y1 * 64 / height, x2 * 64 / width, y2 * 64 / height] for x1, y1, x2, y2 in BOXES]]
    )
    with torch.no_grad():
        masks = Sam2Model.from_pretrained(models["sam2"]).eval()(
            pixel_values=pixels, input_boxes=boxes, multimask_output=False
        )
    logits = torch.nn.functional.interpolate(masks.pred_masks[0], (height, width), mode="bilinear")
    expected = (logits > 0).any(dim=0)[0]
    assert 0.02 < expected.float().mean() < 0.98
    assert (union != expected).float().mean() < 0.002


def test_grounding_dino_as_for_one_image(models: dict[str, str]) -> None:
    """The published processor names a box by the tokens that fit it, from which ours must not differ."""
    search = search_for(1, "black cat", "mat", "St. Bernard")
    settings = RegionSettings(box_threshold=0.6, text_threshold=0.4)
    with torch.no_grad():
        (found,) = load_detector(models["grounding_dino"], settings)([search])
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessorPil.from_pretrained(models["grounding_dino"]),
        BertTokenizer.from_pretrained(models["grounding_dino"]),
    )
    inputs = processor(images=Image.fromarray(search.pixels), text="black cat. mat. st bernard.", return_tensors="pt")
    with torch.no_grad():
        output = GroundingDinoForObjectDetection.from_pretrained(models["grounding_dino"]).eval()(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(
        output, inputs["input_ids"], threshold=0.6, text_threshold=0.4, target_sizes=[search.pixels.shape[:2]]
    )
    height, width = search.pixels.shape[:2]
    counts = []
    for boxes, words in zip(found, ({"black", "cat"}, {"mat"}, {"st", "bernard"}), strict=True):
        named = [bool(words & set(label.replace(".", " ").split())) for label in expected["text_labels"]]
        corners = expected["boxes"][named].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        torch.testing.assert_close(boxes.corners, corners, rtol=1e-4, atol=1e-3)
        assert (boxes.scores > 0.4).all()
        counts.append(sum(named))
    assert len(expected["scores"]) > 0
    assert 0 < sum(counts) < 3 * len(expected["scores"])


def test_owlv2_as_for_one_image(models: dict[str, str]) -> None:
    search = search_for(1, "cat", "mat")
    with torch.no_grad():
        (found,) = load_detector(models["owlv2"], RegionSettings(box_threshold=0.2))([search])
    processor = Owlv2Processor(
        Owlv2ImageProcessorPil.from_pretrained(models["owlv2"]), CLIPTokenizer.from_pretrained(models["owlv2"])
    )
    texts = [["a photo of a cat", "a photo of a mat"]]
    inputs = processor(text=texts, images=Image.fromarray(search.pixels), max_length=24, return_tensors="pt")
    with torch.no_grad():
        output = Owlv2ForObjectDetection.from_pretrained(models["owlv2"]).eval()(**inputs)
    # The published way gives a box to its best text only; so each is asked for alone.
    height, width = search.pixels.shape[:2]
    for column, boxes in enumerate(found):
        logits = output.logits[..., column : column + 1]
        (expected,) = processor.post_process_grounded_object_detection(
            type(output)(logits=logits, pred_boxes=output.pred_boxes), threshold=0.2, target_sizes=[(height, width)]
        )
        corners = expected["boxes"].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        inside = (corners[:, 2:] > corners[:, :2]).all(dim=1)
        assert inside.any()
        torch.testing.assert_close(boxes.corners, corners[inside], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(boxes.scores, expected["scores"][inside], rtol=1e-4, atol=1e-4)


def test_sam_3_as_for_one_image(models: dict[str, str]) -> None:
    search = search_for(0, "cat", "old clock")
    settings = RegionSettings(**ANY_SIZE, box_threshold=0.1)
    (regions,) = open_segmenter(f"sam3={models['sam3']}", settings)([search])
    given = masks_of(regions)
    assert len(given) == 2
    model = Sam3Model.from_pretrained(models["sam3"]).eval()
    pixels = ViTImageProcessorPil.from_pretrained(models["sam3"])(Image.fromarray(search.pixels), return_tensors="pt")
    for region in regions:
        assert not isinstance(region, str)
        text = CLIPTokenizer.from_pretrained(models["sam3"])(
            region["keyword"], padding="max_length", max_length=32, return_tensors="pt"
        )
        with torch.no_grad():
            output = model(**pixels, **text)
        scores = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]
        masks = output.pred_masks.sigmoid()[:, scores > 0.1]
        resized = torch.nn.functional.interpolate(masks, search.pixels.shape[:2], mode="bilinear")[0]
        assert (given[region["keyword"]] != (resized > 0.5).any(dim=0).numpy()).mean() < 0.002
        assert region["score"] == pytest.approx(float(scores.max()), abs=1e-4)


@each_choice
def test_an_image_that_is_a_line_is_set_aside_alone(choice: str, models: dict[str, str]) -> None:
    line = Search(search_for(0).record, 0, np.zeros((2, 400, 3), dtype=np.uint8), search_for(0, "cat").keywords)
    dot = Search(search_for(0).record, 0, np.zeros((1, 1, 3), dtype=np.uint8), search_for(0, "cat").keywords)
    results = open_segmenter(choice.format(**models))([line, search_for(1, "cat"), dot])
    assert str(results[0]) == "image 0 is 400 x 2, too narrow to search for keywords"
    assert isinstance(results[0], RecordError)
    assert isinstance(results[1], list)
    assert isinstance(results[2], list)


@each_choice
@pytest.mark.parametrize("text", ["", ".?", "猫", "cat " * 3000, "[SEP] cat <|endoftext|>"])
def test_whatever_a_keyword_says(choice: str, text: str, models: dict[str, str]) -> None:
    settings = RegionSettings(**ANY_SIZE, box_threshold=0.0, text_threshold=0.0, mask_threshold=0.0)
    (regions,) = open_segmenter(choice.format(**models), settings)([search_for(0, "mat", text)])
    assert list(masks_of(regions)) == ["mat", text]


@each_choice
def test_the_end_of_a_long_keyword_counts(choice: str, models: dict[str, str]) -> None:
    settings = RegionSettings(**ANY_SIZE, box_threshold=0.0, text_threshold=0.0)
    texts = [f"{'old ' * 40}{head}" for head in ("cat", "dog")]
    (regions,) = open_segmenter(choice.format(**models), settings)([search_for(0, *texts)])
    assert isinstance(regions, list)
    assert len({region["score"] for region in regions}) == 2


@each_choice
def test_in_bfloat16_as_on_a_gpu(choice: str, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RegionSettings(**ANY_SIZE, box_threshold=0.0, text_threshold=0.0)
    segment = open_segmenter(choice.format(**models), settings)
    exact = segment(some_searches()[:3])
    monkeypatch.setattr(vision, "default_dtype", lambda: torch.bfloat16)
    rounded = segment(some_searches()[:3])
    scores = [[[region["score"] for region in regions] for regions in results] for results in (exact, rounded)]
    assert scores[0] != scores[1]
    assert [len(regions) for regions in scores[0]] == [len(regions) for regions in scores[1]]


@pytest.mark.parametrize(("name", "prefix"), [("sam2", ""), ("sam3", "detector_model.")])
def test_the_published_video_checkpoints_load(name: str, prefix: str, models: dict[str, str], tmp_path: Path) -> None:
    """Those of SAM 2 and SAM 3 hold a model for videos, of which the one for images is a part."""
    folder = Path(models[name])
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    video = {**config, "model_type": f"{name}_video"}
    if prefix:
        video = {"model_type": f"{name}_video", "detector_config": config}
    (tmp_path / "config.json").write_text(json.dumps(video))
    weights = load_file(folder / "model.safetensors")
    more = {"memory_temporal_positional_encoding": torch.zeros(1), "tracker_model.x": torch.zeros(1)}
    save_file(
        {**{prefix + key: value for key, value in weights.items()}, **more},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    choice = {"sam2": "grounded-sam={owlv2},{sam2}", "sam3": "sam3={sam3}"}[name]
    settings = RegionSettings(**ANY_SIZE, box_threshold=0.0)
    expected = open_segmenter(choice.format(**models), settings)(some_searches()[:2])
    assert open_segmenter(choice.format(**{**models, name: tmp_path}), settings)(some_searches()[:2]) == expected
    assert sum(map(len, expected)) == 3


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("clipseg=nowhere", "nowhere: no such folder"),
        ("clipseg={sam}", "a 'sam' model, but must be clipseg"),
        ("sam3={clipseg}", "a 'clipseg' model, but must be sam3 or sam3_video"),
        ("grounded-sam={sam},{sam}", "a 'sam' model, but must be grounding-dino or owlv2"),
        ("grounded-sam={owlv2},{owlv2}", "a 'owlv2' model, but must be sam or sam2 or sam2_video"),
        ("grounded-sam={owlv2}", "does not name two models; give grounded-sam=DETECTOR,SAM"),
        ("grounded-sam={owlv2},", "does not name two models; give grounded-sam=DETECTOR,SAM"),
    ],
)
def test_a_model_that_will_not_do(choice: str, message: str, models: dict[str, str]) -> None:
    with pytest.raises(MfpoError, match=message):
        open_segmenter(choice.format(**models))


def copy_of(folder: str, to: Path, without: str = "") -> Path:
    for file in Path(folder).iterdir():
        if file.name != without:
            (to / file.name).write_bytes(file.read_bytes())
    return to


def test_weights_that_are_missing_are_not_made_up(models: dict[str, str], tmp_path: Path) -> None:
    copy = copy_of(models["clipseg"], tmp_path)
    weights = load_file(copy / "model.safetensors")
    weights["decoder.film_add.weight"] = weights["decoder.film_add.weight"][:3].clone()
    del weights["decoder.film_mul.bias"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MfpoError, match="2 weights are missing or of another shape"):
        open_segmenter(f"clipseg={copy}")


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("model.safetensors", r"no \*\.safetensors there"),
        ("preprocessor_config.json", "its ViTImageProcessorPil cannot be loaded"),
        ("tokenizer.json", "no tokenizer there"),
        ("config.json", "no model there"),
    ],
)
def test_a_folder_that_lacks_a_file(without: str, message: str, models: dict[str, str], tmp_path: Path) -> None:
    copy = copy_of(models["clipseg"], tmp_path, without)
    (copy / "pytorch_model.bin").write_bytes(b"a pickle")  # would be loaded if pickles were
    with pytest.raises(MfpoError, match=message) as caught:
        open_segmenter(f"clipseg={copy}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"model_type": "clipseg", "size": "many", "projection_dim": "many"}']
)
def test_a_broken_file_is_one_line(file: str, content: str, models: dict[str, str], tmp_path: Path) -> None:
    copy = copy_of(models["clipseg"], tmp_path)
    (copy / file).write_text(content)
    with pytest.raises(MfpoError, match=r"cannot be loaded|is empty|not valid JSON|a None model") as caught:
        open_segmenter(f"clipseg={copy}")
    assert "\n" not in str(caught.value)


def test_masks_of_the_source_load_no_model() -> None:
    code = (
        "import sys; from mfpo.build.regions import open_segmenter; open_segmenter('dataset');"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
