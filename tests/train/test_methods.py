"""The baselines' losses against slow loops over tokens, and through the trainer against the model's own logits."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError
from mfpo.logprobs.sequences import encode
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.train.methods.ddpo import changed_tokens, weigh_changed
from mfpo.train.methods.eos import eos
from mfpo.train.methods.ha_dpo import ha_dpo
from mfpo.train.methods.hacl import Features, hacl
from mfpo.train.methods.halva import halva, phrase_pairs
from mfpo.train.methods.povid import povid
from mfpo.train.objectives import OBJECTIVES, Answer, Answers, LogRatios, total
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings

VOCABULARY = 11
END = 2


def answer(seed: int, *ids: list[int]) -> Answer:
    """Answers with random logits, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    length = max(map(len, ids))
    rows = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    mask = torch.tensor([[place < len(row) for place in range(length)] for row in ids])
    logits = 3 * torch.randn(*rows.shape, VOCABULARY, generator=generator, dtype=torch.float64)
    return Answer(logits.masked_fill(~mask[..., None], 0.0), rows, mask)


CHOSEN = [[5, 6, 7, 8, END], [4, 9, END]]
REJECTED = [[5, 3, 3, 7, 8, END], [4, 9, 10, END]]


@pytest.fixture
def policy() -> Answers:
    return Answers(answer(0, *CHOSEN), answer(1, *REJECTED), answer(2, *CHOSEN))


@pytest.fixture
def reference() -> Answers:
    return Answers(answer(3, *CHOSEN), answer(4, *REJECTED), answer(5, *CHOSEN))


@pytest.fixture
def ratios() -> LogRatios:
    return LogRatios(*torch.randn(3, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64))


def probabilities(logits: torch.Tensor, without: set[int] = frozenset()) -> list[float]:
    powers = [0.0 if token in without else math.exp(value) for token, value in enumerate(logits.tolist())]
    return [power / sum(powers) for power in powers]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_token_logps_are_a_softmax_and_0_behind_the_end(policy):
    for row, ids in enumerate(CHOSEN):
        for place, logp in enumerate(policy.chosen.logps()[row].tolist()):
            expected = math.log(probabilities(policy.chosen.logits[row, place])[ids[place]]) if place < len(ids) else 0
            assert logp == pytest.approx(expected, abs=1e-12)


def test_ha_dpo_adds_the_language_model_loss(ratios):
    nll = torch.tensor([2.0, 3.0], dtype=torch.float64)
    losses = total(ha_dpo(ratios, nll, beta=0.3, lm_weight=0.25))
    for row in range(2):
        dpo = -log_sigmoid(0.3 * float(ratios.chosen[row] - ratios.rejected[row]))
        assert losses[row].item() == pytest.approx(dpo + 0.25 * float(nll[row]))


def test_eos_takes_the_end_out_of_the_softmax_where_it_is_not_the_label(policy):
    losses = eos(policy, torch.tensor([END, 10]))["lm"]
    nll = []
    for row, ids in enumerate(CHOSEN):
        for place, token in enumerate(ids):
            hidden = set() if token in (END, 10) else {END, 10}
            nll.append(-math.log(probabilities(policy.chosen.logits[row, place], without=hidden)[token]))
    assert losses.mean().item() == pytest.approx(sum(nll) / len(nll))


def test_eos_teaches_no_end_where_the_answer_goes_on(policy):
    policy.chosen.logits.requires_grad_()
    eos(policy, torch.tensor([END]))["lm"].sum().backward()
    gradient = policy.chosen.logits.grad[..., END]
    assert gradient.isfinite().all()
    assert [[value != 0 for value in row] for row in gradient.tolist()] == [
        [False, False, False, False, True], [False, False, True, False, False]
    ]  # fmt: skip


def test_povid_scores_under_the_clean_image_what_each_model_says_of_the_noise(ratios, policy, reference):
    losses = povid(ratios, policy, reference, beta=0.3)
    for row, ids in enumerate(CHOSEN):
        sums = []
        for model in (policy, reference):
            assert model.rejected_image is not None
            said = [max(range(VOCABULARY), key=line.__getitem__) for line in model.rejected_image.logits[row].tolist()]
            sums.append(
                sum(math.log(probabilities(model.chosen.logits[row, place])[said[place]]) for place in range(len(ids)))
            )
        image = -log_sigmoid(0.3 * (float(ratios.chosen[row]) - (sums[0] - sums[1])))
        text = -log_sigmoid(0.3 * float(ratios.chosen[row] - ratios.rejected[row]))
        assert losses["image"][row].item() == pytest.approx(0.5 * image)
        assert losses["text"][row].item() == pytest.approx(0.5 * text)


def test_halva_contrasts_phrases_and_stays_near_the_reference(policy, reference):
    losses = halva(policy, reference, kl_weight=0.7)
    w, r = policy.chosen.logps()[0].tolist(), policy.rejected.logps()[0].tolist()
    # 6 gave way to 3 3 in the first record; in the second, 10 was added, which is no pair.
    pair = math.log1p(math.exp((r[1] + r[2]) - w[1]))
    assert losses["text"].mean().item() == pytest.approx(pair)
    for row, ids in enumerate(CHOSEN):
        divergence = 0.0
        for place in range(len(ids)):
            p, q = (probabilities(model.chosen.logits[row, place]) for model in (reference, policy))
            divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert losses["kl"][row].item() == pytest.approx(0.7 * divergence)


def test_halva_of_answers_without_a_pair_is_0(reference):
    same = Answers(answer(0, [4, END]), answer(1, [4, 5, END]))
    losses = halva(same, replace(same, chosen=answer(0, [4, END])))
    assert losses["text"].tolist() == [0.0]
    assert losses["kl"].tolist() == [0.0]


def test_phrases_are_what_replaces_what():
    pairs = phrase_pairs([1, 2, 3, 4, 5, 6], [1, 9, 3, 4, 7, 7, 6, 8])
    assert pairs == [(slice(1, 2), slice(1, 2)), (slice(4, 5), slice(4, 6))]


@pytest.mark.parametrize("all_hallucinated", [False, True])
def test_hacl_is_two_softmaxes_over_cosines(all_hallucinated):
    torch.manual_seed(0)
    features = Features(*torch.randn(3, 4, 6, dtype=torch.float64))
    nll = torch.arange(4.0, dtype=torch.float64)
    losses = hacl(nll, features, temperature=0.5, contrast_weight=2.0, all_hallucinated=all_hallucinated)

    def cosine(a, b):
        return float((a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt())

    for row in range(4):
        image, chosen = features.images[row], features.chosen[row]
        hallucinated = features.rejected if all_hallucinated else features.rejected[row : row + 1]
        texts = [math.exp(cosine(image, text) / 0.5) for text in [*features.chosen, *hallucinated]]
        images = [math.exp(cosine(chosen, other) / 0.5) for other in features.images]
        own = math.exp(cosine(image, chosen) / 0.5)
        contrast = -math.log(own / sum(texts)) - math.log(own / sum(images))
        assert losses["contrast"][row].item() == pytest.approx(2.0 * contrast / 2)
        assert losses["lm"][row].item() == row


@pytest.mark.parametrize(
    ("chosen", "rejected", "changed_chosen", "changed_rejected"),
    [
        ("abcXdef", "abcYYdef", "000100 0", "00011000"),  # a replacement
        ("abcdef", "abcXdef", "000000", "0000000"),  # an addition changes nothing
        ("abcXdYefg", "abcZdWefg", "000111000", "000111000"),  # one equal token between changes counts as changed
        ("abcXYZ", "abc", "000000", "000"),
        ("XYZabc", "UVabc", "111000", "11000"),
        ("same", "same", "0000", "0000"),
    ],
)
def test_changed_tokens_are_replaced_ones(chosen, rejected, changed_chosen, changed_rejected):
    def ids(text: str) -> torch.Tensor:
        return torch.tensor([ord(letter) for letter in text])

    found = changed_tokens(torch.tensor([1, 500, 501, 502]), ids(chosen), ids(rejected))
    for changed, expected in zip(found, (changed_chosen, changed_rejected), strict=True):
        assert "".join(str(int(one)) for one in changed) == expected.replace(" ", "")


def test_in_a_long_prompt_no_match_starts_at_its_image_tokens():
    prompt, image = torch.tensor([1, *[7] * 250, 3]), [7] * 4  # an answer with tokens as frequent as images'
    found = changed_tokens(prompt, torch.tensor([20, *image, 21]), torch.tensor([22, *image, 23]))
    assert [one.tolist() for one in found] == [[True] * 6] * 2
    short = changed_tokens(torch.tensor([1, 7, 7, 3]), torch.tensor([20, *image, 21]), torch.tensor([22, *image, 23]))
    assert [one.tolist() for one in short] == [[True, False, False, False, False, True]] * 2


def test_weights_of_changed_tokens():
    prompt, chosen, rejected = torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8, 9]), torch.tensor([5, 1, 7, 8, 9])
    expected = torch.tensor([1.0, 5.0, 1.0, 1.0, 1.0])
    for weights in weigh_changed(prompt, (chosen, rejected), gamma=5.0, normalize=False):
        torch.testing.assert_close(weights, expected)
    for weights in weigh_changed(prompt, (chosen, rejected), gamma=5.0):
        torch.testing.assert_close(weights, expected / 9)
    torch.testing.assert_close(weigh_changed(prompt, (chosen,), normalize=False)[0], torch.ones(5))


def test_gradients_are_those_of_finite_differences(ratios, policy, reference):
    """No gradient is lost: of each input that the policy moves, the others as they are."""

    def moved(name):
        return lambda logits: replace(policy, **{name: replace(getattr(policy, name), logits=logits)})

    nll, features = torch.tensor([2.0, 3.0], dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    functions = [(lambda chosen: ha_dpo(replace(ratios, chosen=chosen), chosen), ratios.chosen)]
    functions += [(lambda logits: povid(ratios, moved("chosen")(logits), reference), policy.chosen.logits)]
    functions += [
        (lambda logits, at=at: halva(moved(at)(logits), reference), getattr(policy, at).logits)
        for at in ("chosen", "rejected")
    ]
    functions += [
        (lambda states: hacl(nll, Features(*states)), features),
        (lambda nll: hacl(nll, Features(*features)), nll),
    ]
    for function, start in functions:
        given = start.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda value, of=function: total(of(value)), given)
        (gradient,) = torch.autograd.grad(total(function(given)).sum(), given)
        assert gradient.abs().sum() > 0


def test_the_reference_computes_in_the_precision_of_the_policy(tiny_llava, preference_data, other_model, open_trainer):
    settings = TrainSettings(method="halva")
    trainer = open_trainer(preference_data, settings, torch.zeros(14, 2), frozen=other_model, bf16=True)
    seen = []
    other_model.register_forward_pre_hook(lambda *given: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.no_grad():
        batch = trainer.collate([trainer.train_dataset[i] for i in (0, 1)])
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=2)
    assert seen == [True]


def with_kind(kind: str | None, data: Path, folder: Path) -> Path:
    """The records with another name for how their rejected images were made; as they are without one."""
    for shard in data.glob("*.parquet") if kind else ():
        table = pq.read_table(shard)
        place = table.column_names.index("corruption")
        named = [corruption | {"kind": kind} for corruption in table["corruption"].to_pylist()]
        named = pa.array(named, table.schema.field("corruption").type)
        pq.write_table(table.set_column(place, table.schema.field("corruption"), named), folder / shard.name)
    return folder if kind else data


# The reference's logits come from the adapter's base, or a second model; HACL's states from batches of its own.
@pytest.mark.parametrize(("method", "lora_rank"), [("povid", 2), ("halva", 0), ("hacl", 0)])
def test_a_run_starts_at_its_reference_and_moves_away(method, lora_rank, tiny_llava, preference_data, tmp_path):
    data = with_kind(OBJECTIVES[method].corruption, preference_data, tmp_path)
    settings = {"learning_rate": 1e-2, "epochs": 1, "batch_size": 7, "logging_steps": 1, "lora_rank": lora_rank}
    train(data, tiny_llava, tmp_path / "run", TrainSettings(method=method, **settings))
    first, second = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert first["loss"] != second["loss"]
    at_start = {"povid": ("loss/image", 0.5 * math.log(2)), "halva": ("loss/kl", 0.0)}
    name, value = at_start.get(method, ("rewards/margins", 0.0))
    assert first[name] == pytest.approx(value, abs=1e-6)
    assert second[name] != pytest.approx(value, abs=1e-6)


# Through the trainer: the loss of two records from the model's own logits, one sequence at a time.


def by_the_book(model, processor, record, images: str, text: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits that predict an answer's tokens, from one sequence alone; the answer's and the prompt's tokens."""
    pictures = [image.convert("RGB") for image in record[images]]
    row = encode(processor, pictures, record["prompt"], [record[text]], max_length=999)
    ids = torch.cat([row.prompt_ids, row.answers[0]])
    with torch.no_grad():
        logits = model(input_ids=ids[None], **row.features).logits[0]
    return logits[len(row.prompt_ids) - 1 : -1], row.answers[0], row.prompt_ids


@pytest.fixture
def other_model(tiny_llava):
    """A reference that differs from the policy."""
    model = load_model(tiny_llava)
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in model.get_decoder().parameters():
            weights.add_(0.05 * torch.randn_like(weights))
    return model


@pytest.mark.parametrize("method", ["mdpo", "ha-dpo", "povid", "halva", "eos", "ddpo"])
def test_losses_of_the_trainer_are_those_of_single_sequences(
    method, tiny_llava, preference_data, other_model, open_trainer
):
    settings = TrainSettings(method=method).resolved()
    dataset, processor = read_dataset(preference_data), load_processor(tiny_llava)
    model = load_model(tiny_llava)
    sequences = [("images", "chosen"), ("images", "rejected"), ("rejected_images", "chosen")]
    answers: dict[str, list[Answer]] = {"policy": [], "reference": []}
    prompts = []
    for row in (3, 5):
        for name, source in (("policy", model), ("reference", other_model)):
            for images, text in sequences:
                logits, ids, prompt_ids = by_the_book(source, processor, dataset[row], images, text)
                answers[name].append(Answer(logits[None], ids[None], torch.ones_like(ids, dtype=torch.bool)[None]))
        prompts.append(prompt_ids)
    weights = [torch.ones(a.ids.shape[1]) for a in answers["policy"]]
    if method == "ddpo":
        for start, prompt in zip((0, 3), prompts, strict=True):
            pair = [answers["policy"][start + number].ids[0] for number in (0, 1)]
            weights[start : start + 2] = weigh_changed(prompt, pair)
        assert max(float(weight.max() / weight.min()) for weight in weights) == 5.0
    logps = {
        name: torch.stack([(a.logps()[0] * w).sum() for a, w in zip(every, weights, strict=True)]).view(2, 3)
        for name, every in answers.items()
    }
    count = 3 if OBJECTIVES[method].needs_rejected_images else 2
    reference = torch.zeros(14, count)
    reference[[3, 5]] = logps["reference"][:, :count]
    trainer = open_trainer(preference_data, settings, reference, frozen=other_model)
    with torch.no_grad():
        batch = trainer.collate([trainer.train_dataset[i] for i in (0, 1)])
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=2)
    expected = slow_loss(method, answers, LogRatios(*(logps["policy"] - logps["reference"]).T))
    assert loss.item() == pytest.approx(expected, abs=2e-4)


def slow_loss(method: str, answers: dict[str, list[Answer]], ratios: LogRatios) -> float:
    """The batch's loss, record by record; the methods' functions themselves are tested above."""
    by_record = {name: [Answers(*every[i : i + 3]) for i in (0, 3)] for name, every in answers.items()}
    tokens = [record.chosen.ids.shape[1] for record in by_record["policy"]]
    nll = [-float(record.chosen.logps().sum()) for record in by_record["policy"]]
    gaps = [float(gap) for gap in ratios.chosen - ratios.rejected]
    if method == "mdpo":
        crops = [float(gap) for gap in ratios.chosen - ratios.rejected_image]
        return -sum(log_sigmoid(0.1 * gap) for gap in [*gaps, *crops, *ratios.chosen.tolist()]) / 2
    if method == "ddpo":
        return -sum(log_sigmoid(0.5 * gap) for gap in gaps) / 2
    if method == "ha-dpo":
        return -sum(log_sigmoid(0.1 * gap) for gap in gaps) / 2 + 0.5 * sum(nll) / sum(tokens)
    if method == "eos":
        return sum(
            float(eos(record, torch.tensor([2]))["lm"]) * count
            for record, count in zip(by_record["policy"], tokens, strict=True)
        ) / sum(tokens)
    if method == "povid":
        rows = [LogRatios(*(value[row : row + 1] for value in ratios.there().values())) for row in (0, 1)]
        parts = [povid(*one) for one in zip(rows, by_record["policy"], by_record["reference"], strict=True)]
        return sum(float(total(part)) for part in parts) / 2
    kl, text, pairs = 0.0, 0.0, 0
    for own, other in zip(by_record["policy"], by_record["reference"], strict=True):
        count = len(phrase_pairs(own.chosen.ids[0].tolist(), own.rejected.ids[0].tolist()))
        part = halva(own, other)
        kl, text, pairs = kl + float(part["kl"]) / 2, text + float(part["text"]) * count, pairs + count
    return kl + text / max(pairs, 1)


def test_features_of_hacl_are_the_states_at_the_end_of_images_and_of_texts(tiny_llava, preference_data, open_trainer):
    settings = TrainSettings(method="hacl", temperature=0.3).resolved()
    trainer = open_trainer(preference_data, settings, torch.zeros(14, 2))
    records = [trainer.train_dataset[i] for i in (0, 1)]
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, trainer.collate(records), num_items_in_batch=2)
    model, features, nll, tokens = load_model(tiny_llava), [], 0.0, 0
    image_id = model.config.image_token_id
    for pair, _ in records:
        prompt = pair.prompts[0]
        image = torch.tensor([image_id] * int((prompt.prompt_ids == image_id).sum()) + [2])
        rows = [(image, dict(prompt.features))] + [(text, {}) for text in prompt.answers]
        with torch.no_grad():
            outputs = [model(input_ids=ids[None], **more, output_hidden_states=True) for ids, more in rows]
            whole = model(input_ids=torch.cat([prompt.prompt_ids, prompt.answers[0]])[None], **prompt.features).logits
        features.append([output.hidden_states[-1][0, -1] for output in outputs])
        logps = whole[0, len(prompt.prompt_ids) - 1 : -1].log_softmax(-1)
        nll, tokens = nll - float(logps.gather(1, prompt.answers[0][:, None]).sum()), tokens + len(prompt.answers[0])
    stacked = Features(*(torch.stack(part) for part in zip(*features, strict=True)))
    contrast = hacl(torch.zeros(2), stacked, temperature=0.3)["contrast"].mean()
    assert loss.item() == pytest.approx(nll / tokens + float(contrast), abs=2e-4)


def test_hacl_of_a_model_that_shows_no_states_is_an_error(preference_data, open_trainer):
    settings = TrainSettings(method="hacl").resolved()
    with pytest.raises(MfpoError, match="method hacl reads hidden states that a 'llava' model does not give here"):
        open_trainer(preference_data, settings, torch.zeros(14, 2), attention="eager")
