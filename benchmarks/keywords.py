"""How often the best keyword is an object in the image, and how fast keywords are found, beside other rankings.

    python benchmarks/keywords.py --data ../shared/data --json keywords.json

Without the reference data it measures only the speed, on captions of the picture book.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # one core, also for linear algebra

import networkx as nx
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from mfpo.build.keywords import rank_keywords
from mfpo.build.settings import KeywordSettings, resolve_tagger
from mfpo.build.words import SECONDARY, Candidate, candidates, open_tagger, tag_with_textblob
from mfpo.objects import category_of
from mfpo.picturebook.scenes import make_scene
from mfpo.picturebook.texts import caption
from mfpo.truth import load_annotations

MODELS = ("shikra", "minigpt4", "instructblip")
SETTINGS = KeywordSettings()
# networkx is slow: its time is taken on so many captions.
WITH_NETWORKX = 300
ROUNDS = 5


@dataclass(frozen=True)
class Answer:
    """An answer, and the COCO classes that its image really has."""

    text: str
    truth: frozenset[str]


# ---- other rankings: from candidates to the numbers of the best, best first


def by_frequency(text: str, phrases: Sequence[Candidate]) -> list[int]:
    return sorted(range(len(phrases)), key=lambda i: (-len(phrases[i].positions), phrases[i].positions[0]))


def by_first_mention(text: str, phrases: Sequence[Candidate]) -> list[int]:
    return list(range(len(phrases)))


def text_rank(text: str, phrases: Sequence[Candidate]) -> list[int]:
    """Mihalcea and Tarau 2004: a graph of neighbouring nouns and adjectives; a phrase has the sum of its words."""
    words = [word.lower() if tag.startswith(("NN", "JJ")) else "" for word, tag in tag_with_textblob(text)]
    graph = nx.Graph()
    graph.add_nodes_from(filter(None, words))
    for distance in (1, 2):
        graph.add_edges_from((a, b) for a, b in zip(words, words[distance:], strict=False) if a and b)
    rank = nx.pagerank(graph)
    return best_first([sum(rank.get(word, 0) for word in phrase.text.split()) for phrase in phrases])


def multipartite_rank(text: str, phrases: Sequence[Candidate]) -> list[int]:
    """Boudin 2018, with its own numbers."""

    def weight(i: int, j: int) -> float:
        return sum(1 / abs(a - b) for a in phrases[i].positions for b in phrases[j].positions)

    def boost(i: int) -> float:
        return 1.1 * np.exp(1 / (1 + phrases[i].positions[0]))

    topics = topics_of([phrase.text.split() for phrase in phrases])
    return best_first(page_rank(multipartite_graph(topics, weight, boost)))


def networkx_mfpo(text: str, phrases: Sequence[Candidate]) -> list[int]:
    """The same weights as `mfpo.build.keywords`, one edge at a time."""

    def weight(i: int, j: int) -> float:
        pairs = [(a, b) for a in phrases[i].positions for b in phrases[j].positions]
        return sum(1 / (1 + abs(a - b) ** SETTINGS.phi) for a, b in pairs)

    def boost(i: int) -> float:
        return SETTINGS.alpha * np.exp(1 / (3 + phrases[i].positions[0]))

    graph = multipartite_graph(topics_of([phrase.nouns for phrase in phrases]), weight, boost)
    for _, i, edge in graph.edges(data=True):
        edge["weight"] *= np.exp(-SETTINGS.decay * phrases[i].positions[0])
        edge["weight"] *= SETTINGS.secondary if phrases[i].nouns[-1] in SECONDARY else 1
    return best_first(page_rank(graph))


def multipartite_graph(
    topics: Sequence[int], weight: Callable[[int, int], float], boost: Callable[[int], float]
) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(topics)))
    graph.add_weighted_edges_from((j, i, weight(i, j)) for i in graph for j in graph if topics[i] != topics[j])
    plain = {(j, i): edge["weight"] for j, i, edge in graph.edges(data=True)}
    for i in graph:
        mates = [k for k in graph if topics[k] == topics[i] and k != i]
        if mates and i < min(mates):
            for j in graph.predecessors(i):
                graph[j][i]["weight"] += boost(i) * sum(plain[j, k] for k in mates)
    return graph


def topics_of(words: Sequence[Iterable[str]]) -> list[int]:
    """Average linkage of phrases by their words, joined at a Jaccard distance below 0.74."""
    if len(words) == 1:
        return [0]
    known = sorted({word for phrase in words for word in phrase})
    has_word = np.array([[word in phrase for word in known] for phrase in words])
    return list(fcluster(linkage(pdist(has_word, "jaccard"), method="average"), t=0.74, criterion="distance"))


def page_rank(graph: nx.DiGraph) -> list[float]:
    scores = nx.pagerank(graph, alpha=SETTINGS.damping, tol=1e-10, max_iter=1000)
    return [scores[i] for i in graph]


def best_first(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def keywords_by(order: Callable[[str, Sequence[Candidate]], list[int]], text: str) -> list[str]:
    """The best keywords by another ranking; as in mfpo, a phrase and its shorter form count once."""
    phrases = candidates(text)
    best: list[int] = []
    for i in order(text, phrases) if phrases else []:
        ends = [f" {' '.join(phrases[j].nouns)}" for j in (i, *best)]
        if not any(end.endswith(ends[0]) or ends[0].endswith(end) for end in ends[1:]):
            best.append(i)
    return [phrases[i].text for i in best[: SETTINGS.top_k]]


def mfpo_keywords(settings: KeywordSettings, text: str) -> list[str]:
    return [keyword["text"] for keyword in rank_keywords(text, settings)]


# ---- quality


@dataclass(frozen=True)
class Hits:
    """Of the answers that name an object in their image: was the best keyword such an object, and were all found."""

    best: list[bool]
    found: list[bool]


def hits(answers: Sequence[Answer], find: Callable[[str], list[str]], tagger: str) -> Hits:
    best, found = [], []
    for answer in answers:
        named = [category_of(phrase.text) for phrase in candidates(answer.text, open_tagger(tagger))]
        if answer.truth.isdisjoint(named):
            continue
        right = [category_of(keyword) in answer.truth for keyword in find(answer.text)]
        best.append(right[0])
        found += right
    return Hits(best, found)


def read_captions(data: Path) -> list[list[Answer]]:
    """The captions of COCO images by three models: for each line number those of the three."""
    truth = load_annotations(data / "chair" / "coco2014_objects.jsonl.gz")
    files = [(data / "chair" / f"captions_{model}_greedy.jsonl").read_text().splitlines() for model in MODELS]
    rows = [[json.loads(line) for line in lines] for lines in zip(*files, strict=True)]
    return [[Answer(row["caption"], frozenset(truth[str(row["image_id"])])) for row in group] for group in rows]


def read_photos(data: Path) -> list[Answer]:
    """The truthful answers about the photos."""
    instances = json.loads((data / "photos" / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    files = {image["id"]: image["file_name"] for image in instances["images"]}
    seen: dict[str, set[str]] = {}
    for instance in instances["annotations"]:
        seen.setdefault(files[instance["image_id"]], set()).add(names[instance["category_id"]])
    rows = [json.loads(line) for line in (data / "photos" / "preferences.jsonl").read_text().splitlines()]
    return [Answer(row["chosen"], frozenset(seen.get(row["image"], ()))) for row in rows]


def measure_quality(captions: Sequence[Answer], photos: Sequence[Answer], console: Console) -> dict[str, float]:
    finders: dict[str, Callable[[str], list[str]]] = {
        "frequency": partial(keywords_by, by_frequency),
        "first_mention": partial(keywords_by, by_first_mention),
        "textrank": partial(keywords_by, text_rank),
        "multipartiterank": partial(keywords_by, multipartite_rank),
        "secondary_1": partial(mfpo_keywords, replace(SETTINGS, secondary=1.0)),
        "mfpo": partial(mfpo_keywords, SETTINGS),
    }
    spacy = resolve_tagger("auto")
    if spacy != "textblob":
        finders[spacy] = partial(mfpo_keywords, replace(SETTINGS, tagger=spacy))
    shown = Table(
        "ranking", "captions", "photos", "both", "all three keywords", title="best keyword is in the image, %"
    )
    figures: dict[str, float] = {}
    for name, find in finders.items():
        tagger = spacy if name == spacy else "textblob"
        on_captions, on_photos = hits(captions, find, tagger), hits(photos, find, tagger)
        best = {"_captions": on_captions.best, "_photos": on_photos.best, "": on_captions.best + on_photos.best}
        found = float(np.mean(on_captions.found + on_photos.found))
        shown.add_row(name, *(f"{100 * np.mean(right):.1f}" for right in best.values()), f"{100 * found:.1f}")
        figures |= {f"top1_{name}{part}": float(np.mean(right)) for part, right in best.items()}
        figures |= {f"top3_{name}": found, f"answers_{name}": len(best[""])}
    console.print(shown)
    return {"top1_accuracy": figures["top1_mfpo"], **figures}


# ---- speed


def seconds(find: Callable[[str], list[str]], texts: Sequence[str]) -> tuple[list[list[str]], float, float]:
    """What `find` gives, the seconds on the clock, and those of this process alone."""
    clock, own = time.perf_counter(), time.process_time()
    found = [find(text) for text in texts]
    return found, time.perf_counter() - clock, time.process_time() - own


def measure_speed(texts: Sequence[str], console: Console) -> dict[str, float]:
    """Each text comes once. Raises SystemExit when networkx ranks a text otherwise."""
    find = partial(mfpo_keywords, SETTINGS)
    find("A dog.")  # reads the tagger's lexicon
    _, clock, own = seconds(find, texts)
    with_networkx = partial(keywords_by, networkx_mfpo)
    rounds = [
        (seconds(with_networkx, texts[:WITH_NETWORKX]), seconds(find, texts[:WITH_NETWORKX])) for _ in range(ROUNDS)
    ]
    (slow, _, _), (fast, _, _) = rounds[0]
    slow_own = statistics.median(own for (_, _, own), _ in rounds)
    fast_own = statistics.median(own for _, (_, _, own) in rounds)
    if slow != fast:
        number = next(i for i, pair in enumerate(zip(slow, fast, strict=True)) if pair[0] != pair[1])
        raise SystemExit(f"caption {number}: networkx finds {slow[number]}, mfpo {fast[number]}")
    figures: dict[str, float] = {
        "captions": len(texts),
        "words_per_caption": float(np.mean([len(text.split()) for text in texts])),
        "captions_per_second": len(texts) / own,
        "captions_per_second_by_the_clock": len(texts) / clock,
        "captions_per_second_networkx": WITH_NETWORKX / slow_own,
        "speedup_networkx": slow_own / fast_own,
    }
    spacy = resolve_tagger("auto")
    if spacy != "textblob":
        with_spacy = partial(mfpo_keywords, replace(SETTINGS, tagger=spacy))
        with_spacy("A dog.")
        _, _, own = seconds(with_spacy, texts[:WITH_NETWORKX])
        figures[f"captions_per_second_{spacy}"] = WITH_NETWORKX / own
    for name, value in figures.items():
        console.print(f"{name}: {value:,.1f}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the reference data")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    console = Console()
    figures: dict[str, float | str] = {"tagger": SETTINGS.tagger}
    if arguments.data.is_dir():
        captions = read_captions(arguments.data)
        # Speed first, while the words are new. The settings were chosen on other images: see docs/keywords.md.
        figures |= measure_speed([caption.text for group in captions for caption in group], console)
        reported = [caption for group in captions[2::4] for caption in group][:200]
        figures |= measure_quality(reported, read_photos(arguments.data), console)
    else:
        console.print(f"no reference data at {arguments.data}: speed only, on the picture book's captions")
        scenes = [caption(make_scene(seed), np.random.default_rng(seed)) for seed in range(1500)]
        figures |= measure_speed(scenes, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
