"""`mfpo pairs`: ask, check and pair, shard by shard, and sum up."""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets

from mfpo.answer.replies import without_thoughts
from mfpo.build.engine import chunks
from mfpo.build.notes import SetAside, delete_notes, has_notes, note_path, repeats
from mfpo.dataset import read_dataset
from mfpo.errors import RecordError, one_line
from mfpo.folders import provenance_of, whole_folder, write_json
from mfpo.pairs.ask import Asker, open_asker
from mfpo.pairs.check import CHECKERS, Checked, Checker, Shown, check_choice, open_checker
from mfpo.pairs.out import (
    COLUMNS,
    Note,
    Summary,
    count_pair,
    empty_note,
    merge_notes,
    read_note,
    record_of,
    write_jsonl,
)
from mfpo.pairs.pair import PAIRINGS, Answered, Pair, why_none
from mfpo.pairs.questions import Asked, Questions, open_questions
from mfpo.pairs.settings import PairsSettings, check_use
from mfpo.records import without_places
from mfpo.settings import from_mapping, options_of, with_options
from mfpo.shards import write_shard

Progress = Callable[[Iterable[dict[str, Any]]], Iterable[dict[str, Any]]]
# A row with its number.
Row = tuple[int, dict[str, Any]]


def pairs(
    source: str | Path | Questions,
    model: Any,
    out: str | Path,
    settings: PairsSettings = PairsSettings(),
    *,
    check: str = "detector",
    images: str | Path | None = None,
    processor: Any = None,
    engine: str | None = None,
    endpoint: str | None = None,
    **options: Any,
) -> datasets.Dataset:
    """Write pairs of the model's own answers to the folder `out`, and open the dataset; see `pairs_into`.

    `source` is a folder of images, or a file of questions with the folder of their `images`. `options` are the
    checker's settings. Raises SettingError for settings that neither engine nor checker uses.
    """
    check_choice(check)
    of_checker = with_options(PairsSettings, CHECKERS[check.partition("=")[0]])
    settings = from_mapping(of_checker, asdict(settings) | options)
    check_use(settings, check, engine, endpoint)
    if isinstance(source, str | Path):
        source = open_questions(Path(source), None if images is None else Path(images), settings.seed)
    asker = cache(partial(open_asker, model, settings, processor=processor, engine=engine, endpoint=endpoint))
    checker = open_checker(check, asker, Path(out), settings)
    pairs_into(source, asker(), checker, Path(out), settings)
    return read_dataset(Path(out))


def pairs_into(
    source: Questions,
    asker: Asker,
    checker: Checker,
    out: Path,
    settings: PairsSettings,
    *,
    format: str = "parquet",
    progress: Progress = iter,
) -> Summary:
    """Ask each question, check the answers and write the pairs to the folder `out`; docs/pairs.md names its files.

    A question that cannot be asked is set aside, one without a pair left out, each with its reason. Calling it again
    with the same questions, model, check and settings resumes a killed run and ends with the same bytes; with others it
    is refused. Raises MfpoError when `out` exists, and when no question has a pair.
    """
    made_by = {
        "command": "pairs",
        "source": provenance_of(source),
        **asker.made_by,
        "check": provenance_of(checker),
        "settings": asdict(settings),
        "format": format,
    }
    with whole_folder(out, made_by, anew=not has_notes(out.with_name(f"{out.name}.partial"))) as folder:
        taken: set[str] = set()
        for number, rows in enumerate(chunks(enumerate(progress(source)), settings.shard_size)):
            path = folder / f"train-{number:05d}.parquet"
            if not note_path(path).exists():
                write_json(note_path(path), _make_shard(path, rows, taken, source, asker, checker, settings))
            aside = {row["row"] for row in read_note(note_path(path))["set_aside"]}
            taken.update(source.id(row, place) for place, row in rows if place not in aside)
        summary = merge_notes(folder, source.name)
        if format != "parquet":
            write_jsonl(folder, format)
    # Not before the folder has its name: a run that is killed here would do its shards again.
    delete_notes(out)
    return summary


def _make_shard(
    path: Path,
    rows: Iterable[Row],
    taken: AbstractSet[str],
    source: Questions,
    asker: Asker,
    checker: Checker,
    settings: PairsSettings,
) -> Note:
    """Write the pairs of some rows, and what became of each; ids that are `taken` belong to earlier shards."""
    note = empty_note()
    asked: dict[int, Asked] = {}
    own: set[str] = set()  # a row that cannot be asked takes no id
    for number, row in rows:
        note["asked"] += 1
        id = source.id(row, number)
        try:
            if id in taken or id in own:
                raise RecordError(repeats(id))
            asked[number] = source.question(row, number)
            own.add(id)
        except RecordError as error:
            note["set_aside"].append(SetAside(row=number, id=id, reason=one_line(error)))
    to_pair: dict[int, Answered] = {}
    for number, answered in zip(asked, _answer(list(asked.values()), asker, checker), strict=True):
        id = asked[number].id
        if isinstance(answered, RecordError):
            note["set_aside"].append(SetAside(row=number, id=id, reason=one_line(answered)))
            continue
        note["answered"] += 1
        reason = answered if isinstance(answered, str) else why_none(answered.answers)
        if reason:
            note["left_out"].append(SetAside(row=number, id=id, reason=reason))
        elif isinstance(answered, Answered):
            to_pair[number] = answered
    pairing = PAIRINGS[settings.pairing]
    pairs_or_reasons = pairing(list(to_pair.values()), checker, **options_of(settings, pairing))
    records = []
    for (number, answered), pair in zip(to_pair.items(), pairs_or_reasons, strict=True):
        try:
            if not isinstance(pair, Pair):
                raise RecordError(pair)
            records.append(record_of(answered.asked, pair, source.name, number))
            count_pair(note, pair)
        except RecordError as error:
            note["left_out"].append(SetAside(row=number, id=answered.asked.id, reason=one_line(error)))
    write_shard(records, path, COLUMNS)
    return note


def _answer(asked: list[Asked], asker: Asker, checker: Checker) -> list[Answered | str | RecordError]:
    """Each question's whole answers, checked; or why it has none, or cannot be asked."""
    outcomes: dict[int, Answered | str | RecordError] = {}
    texts: dict[int, list[str]] = {}
    for number, answers in enumerate(asker.ask(asked)):
        if isinstance(answers, RecordError):
            outcomes[number] = answers
            continue
        whole = [without_places(without_thoughts(answer.text)) for answer in answers if not answer.cut]
        texts[number] = list(dict.fromkeys(filter(None, whole)))
        if not texts[number]:
            outcomes[number] = "all answers were cut at max_new_tokens" if not whole else "all answers are empty"
    shown = [Shown(asked[number], text) for number, some in texts.items() for text in some]
    checked = iter(zip(shown, checker(shown) if shown else [], strict=True))
    for number, some in texts.items():
        claims = [next(checked)[1] for _ in some]
        fault = next((error for error in claims if isinstance(error, RecordError)), None)
        if fault or number in outcomes:
            outcomes[number] = fault or outcomes[number]
            continue
        answers_of = [
            Checked(text, text_claims)
            for text, text_claims in zip(some, claims, strict=True)
            if isinstance(text_claims, tuple)
        ]
        outcomes[number] = Answered(asked[number], answers_of)
    return [outcomes[number] for number in range(len(asked))]
