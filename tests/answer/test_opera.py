"""OPERA against slow loops, transformers' beam search, and the authors' loop written out plainly."""

import math
from collections import Counter

import pytest
import torch
from transformers import TopKLogitsWarper

from mfpo.answer import opera_search
from mfpo.answer.opera import opera
from mfpo.answer.opera_search import column_scores, find_rollback, penalty, search
from mfpo.answer.settings import AnswerSettings
from mfpo.errors import SettingError
from mfpo.models import load_model
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.scenes import draw_scene, make_scene
from mfpo.processors import encode_questions, load_processor
from mfpo.settings import options_of

KINDS = ["llava", "qwen3_5"]
UNREACHABLE = 10_000


def opera_settings(**changed):
    """The keyword arguments of a search."""
    return options_of(AnswerSettings(decode="opera", **changed), opera)


def random_attention(*shape, seed=0):
    """Rows that sum to at most 1, as the answer's part of attention does; nothing above the diagonal."""
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, shape[-1], generator=random) * 2).softmax(dim=-1).tril()


def slow_column_scores(attention, scale):
    """Each column's product in Python's numbers, which reach to 1e-308."""
    size = len(attention)
    return [1e-7 * math.prod(scale * float(attention[i, j]) for i in range(j, size)) for j in range(size)]


def test_column_scores_are_the_products_below_the_diagonal():
    attention = random_attention(3, 2, 14)
    found = column_scores(attention, scale=50.0)
    assert found.shape == (3, 2, 14)
    for beam in range(3):
        for candidate in range(2):
            expected = slow_column_scores(attention[beam, candidate], 50.0)
            torch.testing.assert_close(
                found[beam, candidate].double().exp(), torch.tensor(expected).double(), rtol=1e-4, atol=0
            )


def test_column_scores_neither_overflow_nor_tie_where_float16_does():
    attention = torch.full((1, 60, 60), 0.3).tril()
    attention[0, 10:, 5] = 0.9
    found = column_scores(attention, scale=50.0)
    assert found.isfinite().all()
    assert found.argmax() == 5
    assert column_scores(torch.zeros(1, 3, 3), scale=50.0).tolist() == [[-math.inf] * 3]


@pytest.mark.parametrize("tokens", [1, 10])
def test_first_ten_tokens_are_rewarded_for_looking_at_the_image(tokens):
    mass = torch.tensor([[0.2, 0.7]])
    assert penalty(random_attention(1, 2, tokens), mass, scale=50.0).tolist() == (-mass).tolist()


def test_later_tokens_lose_the_highest_column_score():
    attention = random_attention(2, 3, 11)
    found = penalty(attention, torch.ones(2, 3), scale=50.0)
    expected = [[max(slow_column_scores(attention[b, c], 50.0)) for c in range(3)] for b in range(2)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=0)
    assert penalty(torch.ones(1, 1, 90, 90), torch.ones(1, 1), scale=50.0).isfinite().all()


def slow_rollback(places, rollbacks, threshold, most):
    """The authors' conditions, in their order; places[step][beam]."""

    def mode(values):
        counts = Counter(values)
        return min(value for value, count in counts.items() if count == max(counts.values()))

    place = mode(places[-1])
    for beam in range(len(places[0])):
        if sum(step[beam] == place for step in places) <= threshold:
            return None
    if place < 10:
        return None
    token = place + 1
    if rollbacks.get(token, 0) >= most:
        token -= 1
        if rollbacks.get(token, 0) >= most:
            return None
    return token


def test_rollback_is_found_as_in_a_loop():
    random = torch.Generator().manual_seed(0)
    found = Counter()
    for _ in range(500):
        places = torch.randint(8, 14, (40, 3), generator=random)
        rollbacks = {token: int(torch.randint(0, 4, (1,), generator=random)) for token in range(8, 16)}
        threshold = int(torch.randint(2, 8, (1,), generator=random))
        expected = slow_rollback(places.tolist(), rollbacks, threshold, 3)
        assert find_rollback(places, rollbacks, threshold=threshold, most=3) == expected
        found[expected] += 1
    assert found[None] > 20
    assert len(found) >= 5


def test_rollback_needs_more_than_the_threshold_in_every_beam():
    long = torch.tensor([[0, 0]] * 12 + [[12, 12]] * 3 + [[12, 11]] + [[12, 12]])
    assert find_rollback(long, {}, threshold=3, most=5) == 13
    assert find_rollback(long, {}, threshold=4, most=5) is None
    assert find_rollback(long, {13: 5}, threshold=3, most=5) == 12
    assert find_rollback(long, {13: 5, 12: 5}, threshold=3, most=5) is None
    late = torch.tensor([[0, 0]] * 12 + [[12, 12]] * 2)  # a token behind the last place is not there yet
    assert find_rollback(late, {}, threshold=1, most=5) == 12
    assert find_rollback(torch.where(long == 12, 9, long), {}, threshold=3, most=5) is None, "within the first ten"


def prompt_of(model, processor, text, image):
    model.set_attn_implementation("eager")
    return encode_questions(processor, [text], [image])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [2, 5])
@torch.no_grad()
def test_without_penalty_it_is_transformers_beam_search_on_the_candidates(make, rows, images, kind, beams):
    """Exactly so where each beam has as many candidates as continuations are taken: 2 x beams.

    With fewer, the first step, in which one beam goes on, has to take tokens that are no candidates.
    """
    model, processor = make(kind)
    settings = opera_settings(num_beams=beams, num_attn_candidates=2 * beams, penalty_weight=0, threshold=UNREACHABLE)
    answers = []
    for row, image in zip(rows, images, strict=True):
        prompt = prompt_of(model, processor, row["text"], image)
        plain = model.generate(
            **prompt,
            num_beams=beams,
            do_sample=False,
            max_new_tokens=20,
            logits_processor=[TopKLogitsWarper(2 * beams)],
            renormalize_logits=True,
        )
        answers.append(search(model, prompt, eos={2}, max_new_tokens=20, **settings))
        assert answers[-1] == plain[0, prompt["input_ids"].shape[1] :].tolist()
    assert len({tuple(answer) for answer in answers}) > 3


@torch.no_grad()
def test_with_all_tokens_as_candidates_it_is_plain_beam_search(make, rows, images):
    model, processor = make("llava")
    settings = opera_settings(num_beams=3, num_attn_candidates=260, penalty_weight=0, threshold=UNREACHABLE)
    for row, image in zip(rows[:2], images, strict=False):
        prompt = prompt_of(model, processor, row["text"], image)
        plain = model.generate(**prompt, num_beams=3, do_sample=False, max_new_tokens=8)
        answer = search(model, prompt, eos={2}, max_new_tokens=8, **settings)
        assert answer == plain[0, prompt["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def test_captions_that_end_by_themselves_end_as_in_transformers():
    model, processor = load_model(WEIGHTS), load_processor(WEIGHTS)
    settings = opera_settings(num_beams=3, num_attn_candidates=6, penalty_weight=0, threshold=UNREACHABLE)
    for seed in range(2):
        prompt = prompt_of(model, processor, "What is in this picture?", draw_scene(make_scene(seed))[0])
        beams = {"num_beams": 3, "logits_processor": [TopKLogitsWarper(6)], "renormalize_logits": True}
        plain = model.generate(**prompt, **beams, do_sample=False, max_new_tokens=200)
        answer = search(model, prompt, eos={2}, max_new_tokens=200, **settings)
        assert answer == plain[0, prompt["input_ids"].shape[1] :].tolist()
        assert answer[-1] == 2


def plain_opera(model, prompt, settings, eos, max_new_tokens):
    """The authors' loop, state by state, with a pass over the whole sequence for each beam and candidate.

    Returns the answer and how many rollbacks there were. Answers are ranked by their sum divided by their length.
    """
    beams, most, start = settings["num_beams"], settings["num_attn_candidates"], prompt["input_ids"].shape[1]
    image = (prompt["input_ids"][0] == model.config.image_token_id).nonzero().flatten()

    def run(answer):
        ids = torch.cat([prompt["input_ids"], torch.tensor([answer]).long()], dim=1)
        inputs = dict(prompt) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            types = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, len(answer))], dim=1)
        output = model(**inputs, use_cache=False, output_attentions=True)
        weights = output.attentions[-1][0].amax(dim=0)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        mass = float(weights[-1, image[0] : image[-1] + 1].sum())
        return output.logits[0, -1], weights[start:, start:], mass

    def mode(values):
        counts = Counter(values)
        return min(value for value, count in counts.items() if count == max(counts.values()))

    answers, scores, finished = [[] for _ in range(beams)], [0.0] + [-1e9] * (beams - 1), []
    chosen, states, places, times, rejected, rollbacks = None, [], [], Counter(), {}, 0
    while True:
        tops, found, table = [], [], []
        for answer in answers:
            logits = run(answer)[0]
            tops.append(logits.topk(most).indices.tolist())
            row, highest = torch.full_like(logits, -999.0), []
            for token in tops[-1]:
                _, attention, mass = run([*answer, token])
                columns = slow_column_scores(attention, settings["scale_factor"])
                highest.append(columns.index(max(columns)))
                taken_off = -mass if len(columns) <= 10 else max(columns)
                row[token] = logits[token] - settings["penalty_weight"] * taken_off
            found.append(mode(highest))
            table.append(row)
        places.append(found)
        states.append({"answers": answers, "scores": scores, "finished": finished, "chosen": chosen})
        token = slow_rollback(places, times, settings["threshold"], most)
        if token is not None:
            times[token] += 1
            rollbacks += 1
            for _ in range(len(answers[0]) + 1 - token - 2):
                states.pop()
                places.pop()
            back, chosen = states[-2], states[-1]["chosen"]
            answers, scores, finished = back["answers"], back["scores"], back["finished"]
            states.pop()
            places.pop()
            rejected[token + 1] = []
            rejected[token] = rejected.get(token, []) + chosen
            table = [run(answer)[0].clone() for answer in answers]
            lowest = [float(row.min()) for row in table]
            for beam, number in rejected[token]:
                table[beam][number] = lowest[beam]
        totals = torch.stack([row.log_softmax(dim=-1) + score for row, score in zip(table, scores, strict=True)])
        best = totals.flatten().topk(2 * beams)
        length = len(answers[0]) + 1
        chosen, following, finished = [], [], list(finished)
        for rank, (total, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            beam, number = divmod(index, totals.shape[1])
            if number == eos or length == max_new_tokens:
                if rank < beams:
                    finished.append((total / length, [*answers[beam], number]))
            elif len(chosen) < beams:
                chosen.append((beam, number))
                following.append(total)
        finished = sorted(finished, key=lambda pair: -pair[0])[:beams]
        if length == max_new_tokens or (len(finished) == beams and following[0] / length <= finished[-1][0]):
            return finished[0][1], rollbacks
        answers, scores = [[*answers[beam], number] for beam, number in chosen], following


@pytest.mark.parametrize(
    ("kind", "number", "threshold"), [("llava", 1, 2), ("llava", 3, 2), ("qwen2_5_vl", 1, 2), ("qwen3_5", 4, 1)]
)
@torch.no_grad()
def test_penalty_and_rollback_are_the_authors_loop(make, rows, images, kind, number, threshold):
    model, processor = make(kind)
    prompt = prompt_of(model, processor, rows[number]["text"], images[number])
    settings = opera_settings(num_beams=2, num_attn_candidates=2, threshold=threshold, scale_factor=30.0)
    expected, rollbacks = plain_opera(model, prompt, settings, 2, 22)
    assert rollbacks > 0
    assert search(model, prompt, eos={2}, max_new_tokens=22, **settings) == expected


@torch.no_grad()
def test_rollbacks_to_one_place_end(make, rows, images, monkeypatch):
    """All attention always on token 11: three choices of token 12 anew, then three of token 11, then on to the end."""
    model, processor = make("llava")
    tokens = []

    def crafted(attention, *, scale):
        size = attention.shape[-1]
        return torch.arange(size).sub(min(11, size - 1)).abs().neg().float().expand(attention.shape[:-1])

    def spy(places, rollbacks, **options):
        tokens.append(find_rollback(places, rollbacks, **options))
        return tokens[-1]

    monkeypatch.setattr(opera_search, "column_scores", crafted)
    monkeypatch.setattr(opera_search, "find_rollback", spy)
    prompt = prompt_of(model, processor, rows[0]["text"], images[0])
    settings = opera_settings(num_beams=2, num_attn_candidates=3, threshold=4)
    answer = search(model, prompt, eos=set(), max_new_tokens=25, **settings)
    assert [token for token in tokens if token is not None] == [12, 12, 12, 11, 11, 11]
    assert len(answer) == 25


def test_opera_answers_each_question_by_itself(make, rows, images):
    model, processor = make("qwen2_5_vl")
    settings = opera_settings(num_beams=2, num_attn_candidates=3)
    with torch.inference_mode():
        together = opera(model, processor, rows, images, 8, **settings)
        alone = [
            opera(model, processor, [row], [image], 8, **settings)[0] for row, image in zip(rows, images, strict=True)
        ]
    assert together == alone
    assert len(set(together)) == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_beams": 1}, "must be 2 or more"),
        ({"scale_factor": 0}, "above 0"),
        ({"threshold": 0}, "must be 1 or more"),
        ({"num_attn_candidates": 0}, "must be 1 or more"),
        ({"penalty_weight": -1}, "must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(SettingError, match=message):
        AnswerSettings(decode="opera", **wrong)
