"""Which files of a dataset are read: as Hugging Face's `datasets` tells splits and subsets apart, and train alone."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mfpo.errors import MfpoError
from mfpo.sources import open_source
from mfpo.sources.splits import choose_files, split_of

CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---
# A dataset
"""
TWO = """---
configs:
- config_name: photos
  data_files:
  - split: train
    path: [photos/a.jsonl, "photos/b*.jsonl"]
  - split: held_out
    path: photos/c.jsonl
- config_name: drawings
  data_dir: drawings
---
"""


def write(folder: Path, *names: str, card: str = "") -> Path:
    """A dataset whose files have two rows each, with the file's name in their ids."""
    for name in names:
        rows = [
            {
                "id": f"{name} {number}",
                "image": "red.png",
                "question": "What?",
                "chosen": "A dog.",
                "rejected": "A cat.",
            }
            for number in range(2)
        ]
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (4, 4), "red").save(folder / "red.png")
    if card:
        (folder / "README.md").write_text(card)
    return folder


def ids(folder: Path, **chosen: str) -> list[str]:
    return sorted(row["id"] for row in open_source(folder, images=folder, **chosen))


def published(folder: Path, cache: Path, split: str = "train", subset: str | None = None) -> list[str]:
    """What `datasets` itself gives."""
    (folder / "red.png").unlink()  # the datasets library takes a folder of images for the data
    loaded = datasets.load_dataset(str(folder), subset, split=split, cache_dir=str(cache))
    Image.new("RGB", (4, 4), "red").save(folder / "red.png")
    return sorted(loaded["id"])


PUSHED = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("names", "card"),
    [
        (PUSHED, CARD),
        (PUSHED, ""),
        (("train.jsonl", "test.jsonl"), ""),
        (("rlaif_v_train.jsonl", "rlaif_v_test.jsonl", "rlaif_v-dev-1.jsonl"), ""),
        (("train/a.jsonl", "test/a.jsonl", "validation/a.jsonl"), ""),
        (("pairs/training/a.jsonl", "pairs/eval/a.jsonl"), ""),
        (("a.jsonl", "b.jsonl"), ""),
        (("contest.jsonl", "latest.jsonl"), ""),
        (("data/a.jsonl", "old/b.jsonl"), "---\nconfigs:\n- config_name: x\n  data_files: data/*.jsonl\n---\n"),
        (("data/a.jsonl", "a.jsonl"), "---\nconfigs:\n- config_name: x\n  data_files: '*.jsonl'\n---\n"),
        (("data/x/a.jsonl", "b.jsonl"), "---\nconfigs:\n- config_name: x\n  data_files: ['**/a.jsonl']\n---\n"),
        (("a.jsonl", "b.jsonl"), "---\nlicense: mit\n---\n"),
        (("a.jsonl", "test.jsonl"), "---\nconfigs:\n- config_name: x\n  data_files: '[!t]*.jsonl'\n---\n"),
        (("a.jsonl", "t.jsonl", "^.jsonl"), "---\nconfigs:\n- config_name: x\n  data_files: '[^t]*.jsonl'\n---\n"),
        (("a.jsonl", "m.jsonl"), "---\nconfigs:\n- config_name: x\n  data_files: ['[!z-a].jsonl']\n---\n"),
        (
            (".x/a.jsonl", "__y/a.jsonl", ".a.jsonl", "b.jsonl"),
            "---\nconfigs:\n- config_name: x\n  data_files: '**'\n---\n",
        ),
    ],
)
def test_the_training_rows_are_those_of_datasets(names: tuple[str, ...], card: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "repo", *names, card=card)
    assert ids(folder) == published(folder, tmp_path / "cache")


@pytest.mark.parametrize("card", [CARD, ""])
def test_another_split_is_chosen_and_what_is_left_out_is_said(card: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "repo", *PUSHED, card=card)
    assert ids(folder, split="test") == published(folder, tmp_path / "cache", "test")
    assert choose_files(folder).left_out == ["split test (1 file)"]
    assert choose_files(folder, "test").left_out == ["split train (2 files)"]
    with pytest.raises(MfpoError, match=r"repo: has no split 'val'; choose split=test or split=train|split=train or"):
        choose_files(folder, "val")


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev"])
def test_words_for_a_split_choose_it(word: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "train.jsonl", "val.jsonl", "test.jsonl")
    assert choose_files(folder, word).files == [folder / "val.jsonl"]
    assert choose_files(folder, "eval").files == [folder / "test.jsonl"]
    assert choose_files(folder / "val.jsonl", word).files == [folder / "val.jsonl"]
    card = "---\nconfigs:\n- config_name: a\n  data_files: {validation: test.jsonl, dev: train.jsonl}\n---\n"
    (folder / "README.md").write_text(card)
    assert choose_files(folder, word).files == [folder / ("train.jsonl" if word == "dev" else "test.jsonl")]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("pairsTrain.jsonl", "train"),
        ("pairsTest.jsonl", "test"),
        ("RLHFTest.jsonl", "test"),
        ("PairsVAL.jsonl", "validation"),
        ("evalSet/a.jsonl", "test"),
        ("pairs_TEST1.jsonl", "test"),
        ("contest.jsonl", "train"),
        ("Contest.jsonl", "train"),
        ("pairs_heldout.jsonl", "test"),
        ("held-out/a.jsonl", "test"),
        ("HoldOut.jsonl", "test"),
        ("household_outage.jsonl", "train"),
        ("pairs_de_v2.jsonl", "train"),
    ],
)
def test_the_split_that_a_name_says(name: str, split: str) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_of_two_splits_is_refused(split: str, tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: a\n  data_files: {train: '*.jsonl', test: test.jsonl, dev: x.json}\n---\n"
    folder = write(tmp_path, "a.jsonl", "test.jsonl", card=card)
    with pytest.raises(MfpoError, match=rf"/test\.jsonl: README\.md lists it in split {split} and in split t"):
        choose_files(folder, split)
    (folder / "README.md").write_text(card.replace("*", "[!t]*"))
    assert choose_files(folder).files == [folder / "a.jsonl"]


def test_files_that_are_in_no_split_are_said(tmp_path: Path) -> None:
    folder = write(tmp_path, *PUSHED, "test.jsonl", "more/a.jsonl")
    assert choose_files(folder).left_out == ["split test (1 file)", "2 other files, such as more/a.jsonl"]
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: {train: '**'}\n---\n")
    chosen = choose_files(folder)
    assert [file.suffix for file in chosen.files] == [".parquet"] * 3
    assert chosen.left_out == ["2 other files, such as more/a.jsonl"]


def test_a_dataset_without_a_train_split_names_those_it_has(tmp_path: Path) -> None:
    names = ("data/train_prefs-00000-of-00001.parquet", "data/test_prefs-00000-of-00001.parquet")
    folder = write(tmp_path / "repo", *names)
    with pytest.raises(MfpoError, match=r"has no split 'train'; choose split=test_prefs or split=train_prefs$"):
        open_source(folder)
    assert ids(folder, split="train_prefs") == published(folder, tmp_path / "cache", "train_prefs")


def test_one_of_several_subsets_has_to_be_chosen(tmp_path: Path) -> None:
    names = ["photos/a.jsonl", "photos/b1.jsonl", "photos/c.jsonl", "drawings/train.jsonl", "drawings/test.jsonl"]
    folder = write(tmp_path / "repo", *names, card=TWO)
    with pytest.raises(MfpoError, match=r"repo: has several subsets; choose subset=photos or subset=drawings$"):
        open_source(folder)
    with pytest.raises(MfpoError, match=r"has no subset 'sketches'; choose subset=photos or subset=drawings$"):
        open_source(folder, subset="sketches")
    for subset in ("photos", "drawings"):
        assert ids(folder, subset=subset) == published(folder, tmp_path / "cache", subset=subset)
    assert ids(folder, subset="photos", split="held_out") == ["photos/c.jsonl 0", "photos/c.jsonl 1"]
    left_out = choose_files(folder, subset="photos").left_out
    assert left_out == ["split held_out (1 file)", "subset drawings"]
    (folder / "README.md").write_text(TWO.replace("  data_dir", "  default: true\n  data_dir"))
    assert ids(folder) == published(folder, tmp_path / "cache2")
    assert ids(folder) == ids(folder, subset="drawings") != ids(folder, subset="photos")


def test_a_file_is_read_whole_whatever_its_name(tmp_path: Path) -> None:
    file = write(tmp_path, "data/pairs_test.jsonl") / "data" / "pairs_test.jsonl"
    source = open_source(file, images=tmp_path)
    assert len(list(source)) == 2
    assert len(list(open_source(file, images=tmp_path, split="test"))) == 2
    for chosen in ({"split": "train"}, {"subset": "photos"}):
        with pytest.raises(MfpoError, match=r"pairs_test\.jsonl: is one file, of split test; give the folder"):
            open_source(file, images=tmp_path, **chosen)


@pytest.mark.parametrize(
    ("configs", "fault"),
    [
        ("7", "configs is 7, but must be a list"),
        ("[7]", "one of them is 7, but must be a mapping"),
        ("[", "while parsing a flow node"),
        ("[" * 5000, "maximum recursion depth exceeded"),
        ("{a: b}", "configs is {'a': 'b'}, but must be a list"),
        ("[{data_files: a}]", "config_name is None, but must be a string or a number"),
        ("[{config_name: a, data_dir: 7}]", "data_dir is 7, but must be a string"),
        ("[{config_name: a, data_files: []}]", "data_files is [], but must be a list or a mapping or a string"),
        ("[{config_name: a, data_files: 7}]", "data_files is 7, but must be a list or a mapping or a string"),
        ("[{config_name: a, data_files: [7]}]", "one of data_files is 7, but must be a mapping"),
        ("[{config_name: a, data_files: [a, {path: b}]}]", "path is {'path': 'b'}, but must be a string"),
        ("[{config_name: a, data_files: {train: 7}}]", "path is 7, but must be a string or a list"),
        ("[{config_name: a, data_files: [{split: train}]}]", "path is None, but must be a string or a list"),
        ("[{config_name: a, data_files: [{path: a}]}]", "split is None, but must be a string or a number"),
        ("[{config_name: a, data_files: 'a{1,2}.jsonl'}]", "path 'a{1,2}.jsonl' has braces, which are not supported"),
    ],
)
def test_a_card_that_cannot_be_read_is_named(configs: str, fault: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "a.jsonl", card=f"---\nconfigs: {configs}\n---\n")
    with pytest.raises(MfpoError, match=rf"README\.md: its `configs` cannot be read \({re.escape(fault)}"):
        open_source(folder)


def test_a_card_whose_files_are_not_there_is_no_reason_to_read_others(tmp_path: Path) -> None:
    folder = write(tmp_path, "pairs.jsonl", card=CARD)
    with pytest.raises(MfpoError, match="none of the files listed in its `configs` exists"):
        open_source(folder)


VALUES = st.recursive(
    st.sampled_from(
        [
            "train",
            "test",
            "data/*",
            "data/[!t]*",
            "[z-a]",
            "{a}",
            "**",
            "../*",
            "/etc/*",
            "[",
            "a" * 500,
            "",
            None,
            7,
            True,
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["split", "path", "config_name", "data_files", "data_dir", "default"]), inner)
    ),
    max_leaves=6,
)


ITEMS = st.fixed_dictionaries({"split": st.sampled_from(["train", "test", "a b"]) | VALUES, "path": VALUES})
DATA_FILES = st.sampled_from(["data/*", "**"]) | st.lists(ITEMS, min_size=1, max_size=3) | VALUES


def test_200_cards_with_anything_in_them(tmp_path: Path) -> None:
    """Files of the folder are chosen, or one line says why not."""
    folder = write(tmp_path / "repo", "data/train.jsonl", "data/test.jsonl")
    ends = {"chosen": 0, "refused": 0}

    @settings(max_examples=200, derandomize=True, deadline=None, database=None)
    @given(
        st.fixed_dictionaries(
            {"config_name": st.just("a")},
            optional={"data_files": DATA_FILES, "data_dir": st.sampled_from(["data", "."]) | VALUES},
        )
    )
    def each(config: Any) -> None:
        (folder / "README.md").write_text(f"---\n{json.dumps({'configs': [config]})}\n---\n")
        try:
            chosen = choose_files(folder)
        except MfpoError as error:
            reason = str(error)
        else:
            assert chosen.files
            assert all(file.is_relative_to(folder) for file in chosen.files)
            ends["chosen"] += 1
            return
        assert "\n" not in reason
        assert len(reason) < 600
        ends["refused"] += 1

    each()
    assert min(ends.values()) > 10
