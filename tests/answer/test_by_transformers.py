"""Answers in batches are those of one question at a time, in the questions' order."""

import json
import shutil
from functools import partial
from typing import Annotated

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from fixtures.families import emu3, hunyuan_vl, picture
from mfpo.answer.decoders import decoder
from mfpo.answer.run import answer
from mfpo.answer.settings import AnswerSettings
from mfpo.errors import MfpoError
from mfpo.images import encode_image
from mfpo.models import load_model, model_files
from mfpo.pairs.ask import open_asker
from mfpo.pairs.check import Shown
from mfpo.pairs.questions import Asked
from mfpo.pairs.run import open_checker
from mfpo.pairs.settings import PairsSettings
from mfpo.processors import encode_questions, load_processor
from mfpo.settings import about

ONE_TOKEN = AnswerSettings(max_new_tokens=1)
WORDS = ["what", "colour", "is", "the", "big", "round", "thing", "left", "of", "a", "dog"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """24 questions of 1 to 11 words, out of order, on 6 images of random pixels."""
    folder = tmp_path_factory.mktemp("questions")
    random = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    rows = [
        {"question_id": f"q{number}", "image": f"{number % 6}.png", "text": " ".join(WORDS[: random.integers(1, 12)])}
        for number in range(24)
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, rows


def texts_of(path):
    return {row["question_id"]: row["text"] for row in map(json.loads, path.read_text().split("\n")[:-1])}


def test_batches_give_the_text_of_plain_greedy_search(tiny_llava, questions, tmp_path):
    folder, rows = questions
    model, processor = load_model(tiny_llava, dtype=torch.float32), load_processor(tiny_llava)

    def plain(row):
        """The likeliest token after everything before it, without padding and without a cache."""
        image = Image.open(folder / row["image"]).convert("RGB")
        batch = encode_questions(processor, [row["text"]], [image])
        start = batch["input_ids"].shape[1]
        for _ in range(12):
            with torch.no_grad():
                token = model(**batch, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            batch["input_ids"] = torch.cat([batch["input_ids"], token], dim=1)
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            if token.item() == processor.tokenizer.eos_token_id:
                break
        return processor.decode(batch["input_ids"][0, start:], skip_special_tokens=True).strip()

    settings = AnswerSettings(batch_size=7, max_new_tokens=12)
    answers = answer(folder / "q.jsonl", tiny_llava, folder, tmp_path / "a.jsonl", settings)
    assert answers == answer(rows, model, folder, None, settings, processor=processor, name=str(tiny_llava))
    texts = texts_of(tmp_path / "a.jsonl")
    assert list(texts) == [row["question_id"] for row in rows]
    assert texts == {row["question_id"]: plain(row) for row in rows}
    assert len(set(texts.values())) > 12


def test_lines_say_which_model_and_settings_answered(tiny_llava, questions, tmp_path):
    folder, rows = questions
    assert len(answer(folder / "q.jsonl", tiny_llava, folder, tmp_path / "a.jsonl", ONE_TOKEN)) == 24
    line = json.loads((tmp_path / "a.jsonl").read_text().split("\n")[0])
    assert list(line) == ["question_id", "image", "prompt", "text", "model", "decode"]
    assert (line["prompt"], line["model"]) == (rows[0]["text"], str(tiny_llava))
    assert line["decode"] == {"strategy": "greedy", "max_new_tokens": 1}


def test_files_of_an_adapter_are_its_bases_too_and_a_name_stands_in_the_answers(tiny_llava, questions, tmp_path):
    folder, _ = questions
    base = shutil.copytree(tiny_llava, tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"])
    adapted = get_peft_model(load_model(base, dtype=torch.float32), config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    load_processor(base).save_pretrained(tmp_path / "adapter")
    before = model_files(tmp_path / "adapter")
    assert before == model_files(tmp_path / "adapter") != model_files(base)
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    after = model_files(tmp_path / "adapter")
    assert (after[0], after[1] != before[1], after[1:]) == (before[0], True, model_files(base))
    answer(folder / "q.jsonl", tmp_path / "adapter", folder, tmp_path / "a.jsonl", ONE_TOKEN, name="mine")
    assert json.loads((tmp_path / "a.jsonl").read_text().split("\n")[0])["model"] == "mine"


def test_batches_are_of_like_length(tiny_llava, questions, tmp_path, monkeypatch):
    """Counted at the encoder: 4 batches of 6 need less padding than in the order of the file, and the longest first."""
    folder, rows = questions
    widths = []

    def counting(processor, texts, images):
        batch = encode_questions(processor, texts, images)
        widths.append(batch["input_ids"].shape[1])
        return batch

    monkeypatch.setattr("mfpo.processors.encode_questions", counting)
    answer(folder / "q.jsonl", tiny_llava, folder, tmp_path / "a.jsonl", AnswerSettings(batch_size=6, max_new_tokens=1))
    assert widths == sorted(widths, reverse=True)
    lengths = sorted((len(row["text"]) for row in rows), reverse=True)
    assert [width - widths[0] for width in widths] == [lengths[start] - lengths[0] for start in range(0, 24, 6)]


def test_the_image_stands_at_its_place_in_the_question(tiny_llava):
    processor = load_processor(tiny_llava)
    batch = encode_questions(processor, ["In <image> I see", "What?"], [Image.new("RGB", (32, 32))] * 2)
    texts = [processor.tokenizer.decode(ids) for ids in batch["input_ids"]]
    image = "<image>" * 16
    assert texts[0].removeprefix("<s>") == f"USER: In {image}\n I see ASSISTANT:"
    assert texts[1].replace("<pad>", "").removeprefix("<s>") == f"USER: {image}\nWhat? ASSISTANT:"


def test_a_model_in_memory_is_known_by_its_weights(tiny_llava, questions, tmp_path):
    """A killed run of it goes on, and starts anew with other weights or images; without its processor there is none."""
    folder, rows = questions
    model, processor = load_model(tiny_llava, dtype=torch.float32), load_processor(tiny_llava)
    asked = []

    @decoder("in_memory")
    def in_memory(model, processor, questions, images, max_new_tokens, *, ends: Annotated[int, about("after")] = 99):
        asked.extend(question["question_id"] for question in questions)
        if len(asked) > ends:
            raise KeyboardInterrupt
        return ["A wall."] * len(questions)

    def ask(images=folder):
        settings = AnswerSettings(decode="in_memory", batch_size=4)
        answer(rows, model, images, tmp_path / "a.jsonl", settings, processor=processor)

    def kill():
        asked.extend(["none"] * 95)
        with pytest.raises(KeyboardInterrupt):
            ask()
        asked.clear()

    kill()
    ask()
    assert len(asked) == 20
    (tmp_path / "a.jsonl").unlink()
    asked.clear()
    kill()
    ask(images=shutil.copytree(folder, tmp_path / "other"))
    assert len(asked) == 24  # though the images have the same names
    (tmp_path / "a.jsonl").unlink()
    asked.clear()
    kill()
    with torch.no_grad():
        model.lm_head.weight += 1
    ask()
    assert len(asked) == 24
    with pytest.raises(MfpoError, match="needs its processor"):
        answer(rows, model, folder)
    with pytest.raises(MfpoError, match="a folder brings its processor"):
        answer(rows, tiny_llava, folder, processor=processor)


def test_a_processor_of_another_model_is_told_in_one_line_and_a_decoders_own_mistake_is_not(tiny_llava, questions):
    folder, rows = questions
    model, processor = load_model(tiny_llava, dtype=torch.float32), load_processor(tiny_llava)

    @decoder("mistaken")
    def mistaken(model, processor, questions, images, max_new_tokens):
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        answer(rows[:1], model, folder, None, AnswerSettings(decode="mistaken"), processor=processor)
    processor.num_additional_image_tokens += 5
    with pytest.raises(MfpoError, match=r"question q0: LlavaForConditionalGeneration cannot read .* \(Image features"):
        answer(rows[:1], model, folder, None, ONE_TOKEN, processor=processor)


@pytest.fixture(params=[(emu3, "<image>"), (hunyuan_vl, "<break><image><break>")], ids=["emu3", "hunyuan_vl"])
def mixing(request):
    """A model that mixes the images of a batch, its processor, and images of which the first is the largest."""
    torch.manual_seed(0)
    make, shown = request.param
    model, processor = make()
    model.generation_config.pad_token_id = 0
    processor.chat_template = shown + "{{ messages[0].content[-1].text }}"
    return model, processor, [picture(number, width=64 - 16 * number) for number in range(3)]


def test_a_model_that_mixes_the_images_of_a_batch_is_asked_one_question_at_a_time(mixing, tmp_path, capsys):
    model, processor, pictures = mixing
    rows = [{"question_id": f"q{number}", "image": f"{number}.png", "text": "What?"} for number in range(3)]
    for number, image in enumerate(pictures):
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = []
    for size in (1, 3):
        settings = AnswerSettings(max_new_tokens=4, batch_size=size)
        answer(tmp_path / "q.jsonl", model, tmp_path, tmp_path / f"{size}.jsonl", settings, processor=processor)
        texts.append(texts_of(tmp_path / f"{size}.jsonl"))
    assert texts[0] == texts[1]
    name = type(model).__name__
    assert (
        capsys.readouterr().err.count(f"a {name} mixes up the images of a batch, so questions are asked one by one")
        == 1
    )


def test_so_it_is_sampled_and_judges_itself(mixing, tmp_path):
    """`mfpo pairs` keeps to the same rule; a batch would give other answers."""
    model, processor, pictures = mixing
    asked = [Asked(f"q{n}", encode_image(image), f"{n}.png", "What?") for n, image in enumerate(pictures)]
    said = [Shown(one, "There is a dog and a cat on a bench.") for one in asked]
    answers, claims, logits = [], [], []
    model.register_forward_hook(lambda module, args, output: logits.append(output.logits[:, -1]))
    for size in (1, 3):
        settings = PairsSettings(samples=2, max_new_tokens=4, batch_size=size)
        asker = partial(open_asker, model, settings, processor=processor)
        answers.append(asker().ask(asked))
        logits.clear()
        claims.append(open_checker("judge", asker, tmp_path / "own", PairsSettings(batch_size=size))(said))
        claims[-1].append(torch.cat(logits[-9:]))
    assert answers[0] == answers[1]
    assert claims[0][:3] == claims[1][:3]
    torch.testing.assert_close(claims[0][3], claims[1][3])


def test_a_batch_that_does_not_fit_the_gpu_says_what_to_lower(tiny_llava, questions, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    folder, _ = questions
    monkeypatch.setattr("mfpo.answer.by_transformers.parts", full)
    with pytest.raises(MfpoError, match="no GPU memory for 1 questions at a time; give a smaller batch_size"):
        answer(folder / "q.jsonl", tiny_llava, folder, tmp_path / "a.jsonl", AnswerSettings(batch_size=1))
