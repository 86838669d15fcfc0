"""Attention on the image against a plain softmax in a loop, and the masks' way to the grid against PIL."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, PixtralVisionConfig

from mfpo.errors import MfpoError, RecordError, SettingError
from mfpo.models import load_model
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.scenes import draw_scene, make_scene
from mfpo.picturebook.splits import SPLITS
from mfpo.probe.attention import image_attention, mass, probe_attention
from mfpo.probe.cases import Case, read_cases
from mfpo.probe.settings import AttentionSettings
from mfpo.probe.words import check_grid, check_kind, find_words, on_grid
from mfpo.processors import load_processor

from .conftest import drawn_mask


def cases_of(folder):
    cases = read_cases(folder, None, lambda case: None)
    return {case.id: case for case in cases.open(cases.rows)}


def plain_attention(model, encoded):
    """(layers, length, length): each layer's attention, mean over heads, from its queries and keys."""
    inputs = []

    def note(module, args, kwargs):
        inputs.append((module, kwargs["hidden_states"][0], [part[0] for part in kwargs["position_embeddings"]]))

    hooks = [
        layer.self_attn.register_forward_pre_hook(note, with_kwargs=True) for layer in model.model.language_model.layers
    ]
    ids = torch.cat([encoded.prompt_ids, *encoded.answers])[None]
    with torch.no_grad():
        model(input_ids=ids, pixel_values=encoded.features["pixel_values"])
    for hook in hooks:
        hook.remove()
    layers = []
    for module, states, (cos, sin) in inputs:
        heads = []
        for head in range(module.config.num_attention_heads):
            of_head = slice(head * module.head_dim, (head + 1) * module.head_dim)
            turned = []
            for projection in (module.q_proj, module.k_proj):
                x = states @ projection.weight[of_head].T
                first, second = x.chunk(2, dim=-1)
                turned.append(x * cos + torch.cat([-second, first], dim=-1) * sin)
            scores = turned[0] @ turned[1].T / math.sqrt(module.head_dim)
            hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(hidden, -math.inf).softmax(dim=-1))
        layers.append(sum(heads) / len(heads))
    return torch.stack(layers).detach()


@pytest.mark.parametrize("at", ["word", "before"])
def test_attention_is_that_of_a_plain_softmax(tiny_llava, good, at):
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    case = cases_of(good)["r0"]
    encoded, words = find_words(processor, case, at=at, max_length=999)
    expected = plain_attention(model, encoded)
    model.set_attn_implementation("eager")
    found = image_attention(model, encoded, words)
    image = [i for i, id in enumerate(encoded.prompt_ids.tolist()) if id == processor.image_token_id]
    assert len(image) == 16
    assert [word.text for word in words] == ["dog", "bench"]
    for word, grid in zip(words, found, strict=True):
        for layer in range(2):
            for row in range(4):
                for column in range(4):
                    token = image[4 * row + column]
                    mean = sum(float(expected[layer, place, token]) for place in word.places) / len(word.places)
                    assert float(grid[layer, row, column]) == pytest.approx(mean, abs=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def test_places_are_those_of_all_mentions_and_of_no_other_word(tiny_llava, good):
    processor = load_processor(tiny_llava)
    case = cases_of(good)["r1"]
    encoded, (word,) = find_words(processor, case, at="word", max_length=999)
    ids = torch.cat([encoded.prompt_ids, *encoded.answers])
    # One token a byte: "carpet" would show.
    assert processor.tokenizer.decode(ids[word.places]) == "red carred car"
    _, (before,) = find_words(processor, case, at="before", max_length=999)
    assert before.places == [place - 1 for place in word.places]


def scene_case(*, sentence, words):
    scene = next(
        scene for scene in map(make_scene, range(SPLITS["heldout"], SPLITS["heldout"] + 500)) if len(scene.things) > 2
    )
    image, masks = draw_scene(scene)
    prompt, chosen = ([{"role": role, "content": text}] for role, text in (("user", "What?"), ("assistant", sentence)))
    return Case("s", image, prompt, chosen, dict(zip(words, masks.values(), strict=False)))


def test_a_word_of_the_picture_book_is_whole_tokens():
    case = scene_case(sentence="There is a red fire hydrant beside a black dog.", words=["fire hydrant", "black dog"])
    processor = load_processor(WEIGHTS)
    encoded, words = find_words(processor, case, at="word", max_length=999)
    ids = torch.cat([encoded.prompt_ids, *encoded.answers])
    spoken = {word.text: processor.tokenizer.decode(ids[word.places]) for word in words}
    assert spoken == {"fire hydrant": " fire hydrant", "black dog": " black dog"}


@pytest.mark.parametrize(("width", "height"), [(150, 96), (61, 200), (32, 32), (45, 41)])
def test_masks_come_to_the_grid_as_pil_resizes_and_crops(tiny_llava, width, height):
    mask = drawn_mask(width, height, seed=width)
    found = on_grid(load_processor(tiny_llava), mask)
    # To 32 pixels on the shorter side, the middle square of it, patches of 8 pixels.
    scale = 32 / min(width, height)
    size = (32 if width <= height else int(width * scale), 32 if height <= width else int(height * scale))
    small = Image.fromarray(mask * np.uint8(255)).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - 32) // 2, (size[1] - 32) // 2
    seen = np.asarray(small.crop((left, top, left + 32, top + 32))) / 255
    assert found.shape == (4, 4)
    for row in range(4):
        for column in range(4):
            expected = seen[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].mean()
            assert float(found[row, column]) == pytest.approx(expected, abs=0.01)
    assert 0 < found.mean() < 1


def test_an_object_lies_where_it_is_on_the_grid_of_the_picture_book():
    mask = np.zeros((96, 96), dtype=bool)
    mask[12:24, 36:54] = True  # a patch has 12 pixels: the one in row 1, column 3, and half of the next
    grid = on_grid(load_processor(WEIGHTS), mask)
    assert grid.shape == (8, 8)
    assert grid[1, 3] == pytest.approx(1, abs=1e-5)
    assert grid[1, 4] == pytest.approx(0.5, abs=1e-5)
    assert grid.sum() == pytest.approx(1.5, abs=1e-4)


def test_what_the_crop_cuts_off_is_no_word(tiny_llava, good):
    case = cases_of(good)["r0"]
    edge = np.zeros((40, 200), dtype=bool)
    edge[:, :20] = True
    cut = Case("edge", case.image.resize((200, 40)), case.prompt, case.chosen, {"dog": edge})
    with pytest.raises(RecordError, match="part of the image seen"):
        find_words(load_processor(tiny_llava), cut, at="word", max_length=999)
    middle = Case("middle", cut.image, case.prompt, case.chosen, {"dog": np.roll(edge, 90, axis=1)})
    assert len(find_words(load_processor(tiny_llava), middle, at="word", max_length=999)[1]) == 1
    with pytest.raises(RecordError, match="max_length=40"):
        find_words(load_processor(tiny_llava), middle, at="word", max_length=40)


def test_even_attention_prefers_nothing():
    cover = torch.rand(4, 4)
    inside, elsewhere, share, area, one = mass(torch.full((1, 4, 4), 0.02), cover)[0]
    assert inside + elsewhere == pytest.approx(16 * 0.02)
    assert share / area == pytest.approx(1)
    assert one == 1
    on_it = mass(cover[None] > 0.5, (cover > 0.5).float())[0]
    assert on_it[1] == 0
    assert on_it[2] == 1


def test_figures_are_means_over_words_and_a_ratio_of_sums(tiny_llava, good, tmp_path):
    out = tmp_path / "out"
    found = probe_attention(good, {"tiny": tiny_llava}, out, AttentionSettings(drawn=2)).rows
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    inside, elsewhere, shares, areas = [], [], [], []
    for case in cases_of(good).values():
        encoded, words = find_words(processor, case, at="word", max_length=2048)
        attention = plain_attention(model, encoded)
        is_image = encoded.prompt_ids == processor.image_token_id
        for word in words:
            grid = attention[1, word.places, : len(is_image)][:, is_image].mean(dim=0)
            cover = word.cover.flatten()
            inside.append(float(grid @ cover))
            elsewhere.append(float(grid.sum()) - inside[-1])
            shares.append(inside[-1] / float(grid.sum()))
            areas.append(float(cover.mean()))
    assert len(inside) == 7
    last = found[1]
    assert (last.model, last.layer) == ("tiny", 2)
    assert last.inside.value == pytest.approx(np.mean(inside), abs=1e-5)
    assert last.elsewhere.value == pytest.approx(np.mean(elsewhere), abs=1e-5)
    assert last.preference.value == pytest.approx(sum(shares) / sum(areas), abs=1e-4)
    assert last.preference.low <= last.preference.value <= last.preference.high
    assert last.inside.n == 5
    results = json.loads((out / "results.json").read_text())
    assert [row["layer"] for row in results["figures"]] == [1, 2]
    assert results["figures"][1]["preference"]["value"] == last.preference.value


def test_the_page_draws_records_and_escapes_what_comes_from_data(tiny_llava, good, tmp_path):
    out = tmp_path / "out"
    probe_attention(good, {"<b>one": tiny_llava, "two": tiny_llava}, out, AttentionSettings(drawn=2, limit=3))
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3
    assert page.count('<img src="data:image/') == 2 * 3  # of each record the image, and the attention of both models
    assert "<b>one" not in page
    assert "“dog” in r0" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_records_without_a_word_are_set_aside(tiny_llava, mixed, tmp_path):
    found = probe_attention(mixed, {"tiny": tiny_llava}, tmp_path / "out", AttentionSettings(drawn=0))
    assert len(found.cases.rows) == 5
    assert set(found.cases.set_aside) == {"none", "two", "broken", "wrong"}


def test_other_models_are_refused_with_those_that_are_known(tiny_llava):
    processor = load_processor(tiny_llava)
    check_grid("tiny", processor)
    check_kind("tiny", load_model(tiny_llava).config)
    with pytest.raises(MfpoError, match=r"pixtral: .*LLaVA-1\.5's kind"):
        check_kind("pixtral", LlavaConfig(vision_config=PixtralVisionConfig()))
    processor.vision_feature_select_strategy = "full"
    with pytest.raises(MfpoError, match=r"full: .*LLaVA-1\.5's kind"):
        check_grid("full", processor)


@pytest.mark.parametrize("wrong", [{"drawn": -1}, {"max_length": 0}])
def test_settings_are_checked(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        AttentionSettings(**wrong)
