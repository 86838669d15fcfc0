"""Paper 3.1: the vectors of phrases, whose cosines are the graph's semantic weights sigma."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mfpo.errors import MfpoError, SettingError, brief, first_line
from mfpo.folders import file_states
from mfpo.hub import find_model

if TYPE_CHECKING:
    import torch

Matrix = NDArray[np.float64]
# Gives a row for each of n phrases, (n, d).
Vectors = Callable[[Sequence[str]], Matrix]

# Phrases come back in answer after answer, so this many are kept.
_KEPT = 20_000


@lru_cache
def open_vectors(choice: str | None) -> Vectors | None:
    """Open the setting `vectors`: None for null, else a function from phrases to their vectors.

    `model=MODEL` takes the input embeddings of a model, `sentence=MODEL` a sentence-transformers model; MODEL is a
    folder or the hub's owner/name. Raises SettingError for any other choice or a missing extra, MfpoError for a model
    that has no such vectors.
    """
    if choice is None:
        return None
    kind, _, name = choice.partition("=")
    if kind == "model" and name:
        return _remember(_embeddings(find_model(name)))
    if kind == "sentence" and name:
        return _remember(_sentence_vectors(find_model(name)))
    raise SettingError(
        f"vectors is {brief(choice)}, but must be null, model=MODEL (a model's input embeddings) "
        "or sentence=MODEL (a sentence-transformers model)"
    )


def vectors_state(choice: str | None) -> dict[str, list[int]]:
    """The states of the files of the model in the setting `vectors`, which identify it when a killed build resumes."""
    return file_states(find_model(choice.partition("=")[2]).iterdir()) if choice else {}


def _remember(vectors: Vectors) -> Vectors:
    """`vectors` asked only for the phrases that are new, all at once."""
    known: dict[str, Matrix] = {}
    lock = Lock()

    def look_up(phrases: Sequence[str]) -> Matrix:
        with lock:
            if len(known) > _KEPT:
                known.clear()
            new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in known]
            if new:
                known.update(zip(new, vectors(new), strict=True))
            return np.stack([known[phrase] for phrase in phrases])

    return look_up


def _embeddings(folder: Path) -> Vectors:
    """The mean of the input embeddings of a phrase's tokens. Of the weights only that one matrix is read."""
    import torch
    from transformers import AutoTokenizer

    from mfpo.models import quiet

    matrix = _embedding_matrix(folder)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MfpoError(f"{folder}: its tokenizer cannot be loaded ({first_line(error)})") from None

    def vectors(phrases: Sequence[str]) -> Matrix:
        # Tokenised after a word, as inside a text: at its beginning many tokenizers cut a word otherwise.
        tokens = tokenizer([f"a {phrase}" for phrase in phrases], add_special_tokens=False, return_offsets_mapping=True)
        rows = []
        for ids, offsets in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True):
            phrase_ids = [number for number, (_, end) in zip(ids, offsets, strict=True) if end > len("a ")]
            rows.append(matrix[phrase_ids].double().mean(dim=0))
        return torch.stack(rows).numpy()

    return vectors


def _embedding_matrix(folder: Path) -> torch.Tensor:
    """The input embeddings, (vocabulary, d), of the model in `folder`, whatever its family calls the modules above."""
    places = []
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as weights:
                places += [(file, name) for name in weights.keys() if name.endswith("embed_tokens.weight")]  # noqa: SIM118
        if len(places) == 1:
            file, name = places[0]
            with safe_open(file, "pt") as weights:
                return weights.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise MfpoError(f"{folder}: its weights cannot be read ({first_line(error)})") from None
    raise MfpoError(
        f"{folder}: {len(places)} of the weights in its *.safetensors are named ...embed_tokens.weight, but 1 must be; "
        "give a language or vision-language model with its weights, or sentence=MODEL"
    )


def _sentence_vectors(folder: Path) -> Vectors:
    """The vectors of a sentence-transformers model."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise SettingError(
            "vectors sentence=MODEL needs sentence-transformers; run `pip install 'mfpo[sentence-transformers]'`"
        ) from None
    from mfpo.models import device, quiet

    if not (folder / "modules.json").is_file():
        raise MfpoError(f"{folder}: no sentence-transformers model there (no modules.json)")
    pickled = [path for path in folder.rglob("*.bin") if not path.with_name("model.safetensors").is_file()]
    if pickled:
        raise MfpoError(f"{pickled[0]}: no model.safetensors next to it; only safetensors are loaded")
    try:
        with quiet():
            model = SentenceTransformer(str(folder), device=str(device()), trust_remote_code=False)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise MfpoError(f"{folder}: cannot be loaded as a sentence-transformers model ({first_line(error)})") from None
    # One by one: padded beside longer ones, a phrase's vector would depend on which others are new.
    return lambda phrases: model.encode(list(phrases), batch_size=1, show_progress_bar=False).astype(np.float64)
