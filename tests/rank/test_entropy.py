"""Entropies against plain loops, hand-made meanings, and a tiny NLI model; what is sampled, and from which numbers."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification, RobertaModel

from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError
from mfpo.logprobs import sequences as logprobs
from mfpo.logprobs.sequences import Encoded, collate, token_logps
from mfpo.models import load_model
from mfpo.processors import load_processor
from mfpo.rank import entropy as entropy_module
from mfpo.rank.entropy import predictive_entropy, token_entropy
from mfpo.rank.measure import open_measure
from mfpo.rank.semantic_entropy import (
    cluster_by_entailment,
    cluster_by_objects,
    load_entailment,
    mean_logps,
    sample_answers,
    semantic_entropy,
)
from mfpo.rank.settings import RankSettings

LETTERS = "abcdefghijklmnopqrstuvwxyz?"


def split(rows):
    return [row for prompt in rows for row in prompt.split()]


def softmax_of(model, row, answer):
    """The probabilities that predict each token of the answer, (tokens, vocabulary): one plain pass, no batch."""
    ids = torch.cat([row.prompt_ids, answer])[None]
    features = dict(row.features)
    if "mm_token_type_ids" in features:
        types = features["mm_token_type_ids"]
        features["mm_token_type_ids"] = torch.cat([types, torch.zeros(1, len(answer), dtype=types.dtype)], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **features).logits[0]
    return logits[len(row.prompt_ids) - 1 : -1].double().softmax(dim=-1)


def plain_predictive(model, row):
    table = softmax_of(model, row, row.answers[0]).tolist()
    return sum(-sum(p * math.log(p) for p in line) for line in table) / len(table)


def test_predictive_entropy_is_the_mean_over_a_loop_of_full_softmaxes(family):
    rows = split(family.rows)
    with torch.no_grad():
        entropies = predictive_entropy(family.model, collate(rows, 0))
    expected = [plain_predictive(family.model, row) for row in rows]
    torch.testing.assert_close(entropies, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_predictive_entropy_of_a_model_that_shares_no_prefix(make_llava):
    family = make_llava(model_type="gemma", head_dim=8)
    rows = split(family.rows)
    with torch.no_grad():
        entropies = predictive_entropy(family.model, collate(rows, 0))
    expected = [plain_predictive(family.model, row) for row in rows]
    torch.testing.assert_close(entropies, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_predictive_entropy_never_holds_more_logits_than_a_chunk(make_llava, monkeypatch):
    family = make_llava()
    batch = collate(split(family.rows), 0)
    with torch.no_grad():
        whole = predictive_entropy(family.model, batch)
    head = family.model.get_output_embeddings()
    sizes = []
    project = head.forward

    def counted(states):
        sizes.append(len(states) * head.out_features)
        return project(states)

    monkeypatch.setattr(head, "forward", counted)
    monkeypatch.setattr(logprobs, "_LOGITS", 3 * head.out_features)
    with torch.no_grad():
        chunked = predictive_entropy(family.model, batch)
    assert max(sizes) == 3 * head.out_features
    assert sum(sizes) == int(batch["answer_mask"].sum()) * head.out_features
    torch.testing.assert_close(chunked, whole)


def test_token_entropy_is_a_loop_over_the_answers_tokens(make_llava):
    family = make_llava()
    rows = split(family.rows)
    with torch.no_grad():
        entropies = token_entropy(token_logps(family.model, collate(rows, 0)))
    for row, entropy in zip(rows, entropies.tolist(), strict=True):
        table = softmax_of(family.model, row, row.answers[0])
        ps = [float(line[token]) for line, token in zip(table, row.answers[0], strict=True)]
        assert entropy == pytest.approx(-sum(p * math.log(p) for p in ps), rel=1e-5, abs=1e-5)


def test_a_token_that_is_ruled_out_adds_nothing():
    logits = torch.tensor([[0.0, -math.inf, 0.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(
        entropy_module._entropy(logits, torch.zeros(len(logits), dtype=torch.long)), torch.tensor([2.0, 3.0]).log()
    )


@pytest.mark.parametrize(
    ("clusters", "probabilities", "expected"),
    [
        ([0, 0, 0], [0.5, 0.2, 0.1], 0.0),
        ([0, 1, 2, 3], [0.3, 0.3, 0.3, 0.3], math.log(4)),
        ([0, 0, 1, 1], [0.1, 0.1, 0.1, 0.1], math.log(2)),
        # The shares are 3/4, 1/8 and 1/8: of what was sampled, whatever the answers' probabilities add up to.
        ([0, 1, 0, 2], [0.2, 0.1, 0.4, 0.1], 0.75 * math.log(4 / 3) + 0.25 * math.log(8)),
    ],
)
def test_semantic_entropy_of_known_meanings(clusters, probabilities, expected):
    assert semantic_entropy(clusters, torch.tensor(probabilities).log()) == pytest.approx(expected, abs=1e-7)


def test_one_meaning_has_no_entropy_at_all():
    for seed in range(20):
        logps = -torch.rand(10, generator=torch.Generator().manual_seed(seed))
        assert semantic_entropy([0] * 10, logps) == 0.0


def test_texts_that_name_the_same_objects_mean_the_same():
    texts = ["A dog on a bench.", "Two dogs!", "A bench with dogs", "A hot dog.", "Nothing here.", "A puppy"]
    assert cluster_by_objects(texts) == [0, 1, 0, 2, 3, 1]


def test_clusters_are_compared_by_their_first_text_in_both_directions():
    mutual = [("cat", "kitty"), ("kitty", "pet"), ("dog", "hound")]
    true = {*mutual, *((b, a) for a, b in mutual), ("puppy", "dog")}

    def entails(pairs):
        return [pair in true for pair in pairs]

    # A puppy is a dog, but a dog is no puppy; "pet" equals "kitty", but the cluster's first text is "cat".
    texts = ["cat", "dog", "kitty", "puppy", "hound", "pet", "puppy"]
    assert cluster_by_entailment(texts, entails) == [0, 1, 0, 2, 1, 3, 2]


def save_nli(folder, labels, model_class=RobertaForSequenceClassification, favourite=None):
    """A random RoBERTa whose classes are `labels`, or one that always answers class `favourite`."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = RobertaConfig(
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        vocab_size=len(tokens),
        max_position_embeddings=42,
        type_vocab_size=1,
        initializer_range=2.0,
        id2label=dict(enumerate(labels)),
    )
    torch.manual_seed(0)
    model = model_class(config)
    if favourite is not None:
        torch.nn.init.zeros_(model.classifier.out_proj.weight)
        model.classifier.out_proj.bias.data = torch.eye(len(labels))[favourite]
    model.save_pretrained(folder)
    return folder


def test_entailment_is_the_likeliest_class_of_each_pair_alone(tmp_path):
    path = save_nli(tmp_path, ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"])
    random = torch.Generator().manual_seed(0)
    texts = ["".join(LETTERS[i] for i in torch.randint(26, (n,), generator=random)) for n in (3, 9, 1, 14, 6, 7)]
    pairs = [(a, b) for a in texts for b in texts]
    model = RobertaForSequenceClassification.from_pretrained(path).eval()
    expected = []
    for premise, hypothesis in pairs:
        ids = [0, *(4 + LETTERS.index(c) for c in premise), 2, 2, *(4 + LETTERS.index(c) for c in hypothesis), 2]
        with torch.no_grad():
            expected.append(int(model(input_ids=torch.tensor([ids])).logits.argmax()) == 2)
    assert 0 < sum(expected) < len(expected)
    assert load_entailment(path)(pairs) == expected


@pytest.mark.parametrize(
    ("labels", "favourite", "expected"),
    [
        (["entailment", "neutral", "contradiction"], 0, [0, 0]),
        (["contradiction", "neutral", "entailment"], 0, [0, 1]),
        (["contradiction", "neutral", "entailment"], 2, [0, 0]),
        (["Entailment", "not_entailment"], 1, [0, 1]),
    ],
)
def test_the_class_of_entailment_is_found_by_its_name(tmp_path, labels, favourite, expected):
    entails = load_entailment(save_nli(tmp_path, labels, favourite=favourite))
    assert cluster_by_entailment(["a", "b"], entails) == expected


def test_an_answer_means_the_same_as_itself_whatever_the_model_says(tmp_path):
    entails = load_entailment(save_nli(tmp_path, ["entailment", "neutral", "contradiction"], favourite=1))
    assert cluster_by_entailment(["a", "b", "a"], entails) == [0, 1, 0]


def test_pairs_beyond_the_nli_models_room_are_cut_and_the_log_says_so_once(tmp_path, caplog):
    entails = load_entailment(save_nli(tmp_path, ["entailment", "neutral", "contradiction"]))
    entails([("a" * 10, "b" * 10)])
    assert not caplog.messages
    entails([("a" * 100, "b" * 100)])
    entails([("c" * 100, "b")])
    assert ["it reads at most 40 tokens" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1", "LABEL_2"], ["not_entailment", "contradiction"]])
def test_a_model_without_an_entailment_label_is_refused(tmp_path, labels):
    with pytest.raises(MfpoError, match=rf"none of its labels \({labels[0].lower()}, .*\) is 'entailment'"):
        load_entailment(save_nli(tmp_path, labels))


def test_a_model_without_a_classifier_is_refused_and_not_filled_with_random_weights(tmp_path):
    with pytest.raises(MfpoError, match="weights are missing or of another shape, such as classifier"):
        load_entailment(save_nli(tmp_path, ["entailment", "other"], model_class=RobertaModel))


def test_pickled_absent_and_other_models_are_refused(tmp_path, tiny_llava):
    path = save_nli(tmp_path / "pickled", ["entailment", "other"])
    model = RobertaForSequenceClassification.from_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    for folder in (path, tmp_path / "nowhere", tiny_llava):
        with pytest.raises(MfpoError, match="cannot be loaded"):
            load_entailment(folder)


SAMPLING = {"id": "r0", "samples": 3, "temperature": 1.0, "max_new_tokens": 6, "pad_id": 0, "end_ids": [2]}


def test_at_temperature_0_every_sample_is_the_likeliest_answer(family):
    for row in family.rows:
        answer = torch.tensor([], dtype=torch.long)
        while len(answer) < 6 and answer[-1:].tolist() != [2]:
            # The token behind, whatever it is, makes the plain pass predict the one that is asked for.
            table = softmax_of(family.model, row, torch.cat([answer, torch.tensor([5])]))
            answer = torch.cat([answer, table[-1].argmax()[None]])
        with torch.no_grad():
            sampled = sample_answers(family.model, row, **SAMPLING | {"temperature": 1e-6})
        assert [drawn.tolist() for drawn in sampled.answers] == [answer.tolist()] * 3


def test_samples_come_from_the_nucleus_of_the_50_likeliest_tokens(make_llava):
    family = make_llava()
    family.model.generation_config.top_k = 1
    row = family.rows[0]
    likeliest = softmax_of(family.model, row, torch.tensor([5]))[0].sort(descending=True)
    shares = likeliest.values[:50] / likeliest.values[:50].sum()
    size = next(n for n in range(1, 51) if shares[:n].sum() >= 0.9)
    assert size < 50
    with torch.no_grad():
        sampled = sample_answers(family.model, row, **SAMPLING | {"samples": 3000, "max_new_tokens": 1})
    counts = torch.bincount(torch.cat(sampled.answers), minlength=len(likeliest.values))[likeliest.indices]
    assert counts[size:].sum() == 0
    expected = 3000 * shares[:size] / shares[:size].sum()
    # Pearson's chi-square, whose mean is its degrees of freedom, k, and whose deviation is the root of 2k.
    chi_square = float(((counts[:size] - expected) ** 2 / expected).sum())
    assert abs(chi_square - (size - 1)) < 4 * math.sqrt(2 * (size - 1))


def test_semantic_entropy_is_the_same_whatever_a_model_generates_by_default(tiny_llava, preference_data):
    records = read_dataset(preference_data).select(range(3))
    model, processor = load_model(tiny_llava), load_processor(tiny_llava)
    settings = RankSettings(entropy="semantic", samples=3, max_new_tokens=6)
    expected = list(open_measure(model, processor, settings, None)(records))
    model.generation_config.update(no_repeat_ngram_size=1, min_new_tokens=6, num_beams=3, typical_p=0.2)
    model.generation_config.update(suppress_tokens=list(range(40, 150)), repetition_penalty=9.0)
    assert list(open_measure(model, processor, settings, None)(records)) == expected


def test_samples_end_at_their_first_end_token_or_count_as_cut(make_llava):
    family = make_llava()
    ends = list(range(2, 40))
    with torch.no_grad():
        sampled = sample_answers(family.model, family.rows[0], **SAMPLING | {"samples": 50, "end_ids": ends})
    assert 0 < sum(sampled.cut) < 50
    for answer, cut in zip(sampled.answers, sampled.cut, strict=True):
        assert [token in ends for token in answer.tolist()] == [False] * (len(answer) - 1) + [not cut]
        assert not cut or len(answer) == 6


def test_samples_depend_on_the_id_and_leave_the_random_numbers_of_others_alone(make_llava):
    family = make_llava()
    row = family.rows[0]

    def draw(id):
        with torch.no_grad():
            return torch.cat(sample_answers(family.model, row, **SAMPLING | {"id": id}).answers).tolist()

    torch.manual_seed(1)
    first = draw("r0")
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after
    assert draw("r1") != first
    assert draw("r0") == first


def test_mean_logps_is_the_sum_over_the_tokens_divided_by_their_number(make_llava):
    family = make_llava()
    for row in family.rows:
        with torch.no_grad():
            means = mean_logps(family.model, row, 0)
        for mean, answer in zip(means.tolist(), row.answers, strict=True):
            table = softmax_of(family.model, row, answer)
            logps = [math.log(line[token]) for line, token in zip(table, answer, strict=True)]
            assert mean == pytest.approx(sum(logps) / len(logps), rel=1e-5)


def test_mean_logps_of_a_model_that_shares_no_prefix(make_llava):
    family = make_llava(model_type="gemma", head_dim=8)
    row = family.rows[3]
    assert isinstance(row, Encoded)
    with torch.no_grad():
        means = mean_logps(family.model, row, 0)
    for mean, answer in zip(means.tolist(), row.answers, strict=True):
        table = softmax_of(family.model, row, answer)
        assert mean == pytest.approx(float(table.gather(1, answer[:, None]).log().mean()), rel=1e-5)
