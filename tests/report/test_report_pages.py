"""The two pages as a browser reads them."""

import base64
import hashlib
import json
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mfpo.errors import MfpoError
from mfpo.images import encode_image
from mfpo.records import new_record
from mfpo.report import inspect, write_report
from mfpo.shards import write_shard

HOSTILE = "<script>alert(1)</script></style>\"'><img src=x onerror=alert(1)>"


class Reader(HTMLParser):
    """Tags, attributes and texts of a page, as they are parsed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self.scripts = [], [], [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        (self.scripts if self.cdata_elem == "script" else self.texts).append(data)

    def values(self, wanted):
        return [value for _, name, value in self.attributes if name == wanted]

    @property
    def text(self):
        return "".join(self.texts).replace("\N{NO-BREAK SPACE}", " ")


def make_record(number, *, fallback=False, text="A dog runs.", question="What is there?", keyword="dog"):
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    mask = np.zeros((24, 32), dtype=np.uint8, order="F")
    mask[4:10, 4:20] = 1
    rejected = np.where(mask[..., None] & (not fallback), 255 - pixels, pixels)
    rle = coco_mask.encode(mask)
    rle["counts"] = rle["counts"].decode()
    region = {"keyword": keyword, "score": 2.0, "mask": rle, "image": 0}
    source = new_record(
        id=f"r{number}",
        images=[encode_image(Image.fromarray(pixels))],
        question=question,
        chosen=text,
        rejected=text + " A cat sleeps.",
        source={"dataset": "test", "row": number},
    )
    return dict(
        source,
        rejected_images=[encode_image(Image.fromarray(rejected))],
        keywords=[{"text": keyword, "score": 2.0}],
        regions=[] if fallback else [region],
        corruption={"kind": "region", "schedule": "sigmoid", "step": 500, "seed": 0, "fallback": fallback},
    )


def write_dataset(folder, records):
    folder.mkdir(parents=True)
    write_shard(records, folder / "train-00000.parquet")
    return folder


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(stage_names=("easy", "hard")):
    return [
        {"stage": stage, "step": step, "loss": 0.7, "loss/text": 0.6, "rewards/chosen": 0.1, "rewards/rejected": -0.1}
        for step, stage in enumerate(stage_names, start=1)
    ]


def write_demo(run, base="base", text="A dog and a cat.", question="Describe it.", setting="x"):
    """A demo folder with two models, one held-out image with a dog, and three ranked records."""
    figures = {"chair_s": 40.0, "chair_i": 10.0, "cover": 90.0, "length": 9.0}
    models = {base: figures, "mfpo": figures | {"chair_s": 10.0, "cover": 85.0}}
    run.mkdir()
    (run / "results.json").write_text(json.dumps({"models": models, "settings": {"seed": setting}, "versions": {}}))
    write_lines(run / "mfpo" / "metrics.jsonl", metrics())
    for name in models:
        if "/" not in name:
            row = {"question_id": "q0", "image": "000007.png", "prompt": question, "text": text}
            write_lines(run / "answers" / f"{name}_captions.jsonl", [row])
    write_lines(run / "heldout" / "annotations.jsonl", [{"image_id": "000007.png", "objects": ["dog"]}])
    Image.new("RGB", (16, 16), "red").save(run / "heldout" / "000007.png")
    shard = write_dataset(run / "ranked", [make_record(n, text=text) for n in range(3)]) / "train-00000.parquet"
    table = pq.read_table(shard).append_column("entropy", pa.array([1.5, 2.5, 3.5]))
    pq.write_table(table.append_column("level", pa.array(["easy", "medium", "hard"])), shard)
    return run


def test_inspect_shows_each_record_with_its_state(tmp_path):
    data = write_dataset(tmp_path / "built", [make_record(0), make_record(1, fallback=True)])
    summary = {"read": 5, "written": 2, "set_aside": 3, "reasons": {"column 'chosen' is missing": 3}, "fallback": 1}
    (data / "summary.json").write_text(json.dumps(summary))
    page = inspect(data)
    assert page == data / "inspect.html"
    reader = Reader(page)
    assert reader.values("data-has") == ["region", "fallback"]
    # 6 x 16 pixels of 24 x 32 are inverted, none is equal to its inverse.
    assert [float(value) for value in reader.values("data-destroyed")] == [0.125, 0.0]
    assert reader.tags.count("img") == 6
    assert all(alt for alt in reader.values("alt"))
    assert "50.0 %fallback" in reader.text
    assert "column 'chosen' is missing (3)" in reader.text


def test_keyword_is_marked_in_both_answers_and_so_is_the_difference(tmp_path):
    page = inspect(write_dataset(tmp_path / "built", [make_record(0)])).read_text()
    assert '<p dir="auto">A <mark class="k0" title="dog">dog</mark> runs.</p>' in page
    assert 'A <mark class="k0" title="dog">dog</mark> runs. <mark class="differs">A cat sleeps</mark>.' in page


def test_keyword_that_differs_has_both_marks(tmp_path):
    record = make_record(0)
    record["rejected"] = [{"role": "assistant", "content": "A dog sees a dog."}]
    page = inspect(write_dataset(tmp_path / "built", [record])).read_text()
    assert '<mark class="differs">sees a </mark><mark class="k0 differs" title="dog">dog</mark>.' in page


def test_inspect_takes_records_at_even_distances(tmp_path):
    data = write_dataset(tmp_path / "built", [make_record(number) for number in range(6)])
    reader = Reader(inspect(data, tmp_path / "page.html", limit=2))
    assert (tmp_path / "page.html").exists()
    assert not (data / "inspect.html").exists()
    assert "2 of 6, evenly spaced" in reader.text
    assert "r0" in reader.texts
    assert "r3" in reader.texts


def test_only_our_script_is_on_the_page_and_may_run(tmp_path):
    reader = Reader(inspect(write_dataset(tmp_path / "built", [make_record(0)])))
    assert reader.tags.count("script") == 1
    (script,) = reader.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [value for value in reader.values("content") if "default-src" in value]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_demo_report_has_every_section(tmp_path):
    page = write_report(write_demo(tmp_path / "demo"))
    reader = Reader(page)
    assert page == tmp_path / "demo" / "report.html"
    assert "mfpo: CHAIRs fell by 75 %, CHAIRi stayed" in reader.text
    assert "Cover fell from 90.0 to 85.0 %" in reader.text
    assert ("td", "class", "worse") in reader.attributes
    assert {"Rewards", "Loss by term", "Held-out images", "Curriculum", "Records", "Settings"} <= set(reader.texts)
    html = page.read_text()
    assert html.count('<mark class="present" title="dog: in the image">dog</mark>') == 2
    assert html.count('<mark class="absent" title="cat: not in the image">cat</mark>') == 2
    assert "chosen, rejected image" not in html  # which no row has
    assert "script" not in reader.tags
    assert all(src.startswith("data:") for src in reader.values("src"))


def test_training_report_leaves_out_what_is_not_there(tmp_path):
    run = tmp_path / "run"
    write_lines(run / "metrics.jsonl", metrics())
    (run / "config.yaml").write_text("method: mfpo\nbeta: 0.1\n")
    (run / "made_by.json").write_text(json.dumps({"versions": {"torch": "9.9"}}))
    reader = Reader(write_report(run))
    assert {"Rewards", "Loss by term", "Settings", "Versions", "method", "9.9", "0.700"} <= set(reader.texts)
    assert not {"Held-out images", "Curriculum", "Records", "Seconds"} & set(reader.texts)
    assert "table" not in reader.tags


def test_held_out_pairs_are_drawn_beside_the_training(tmp_path):
    measured = [
        {
            "stage": "easy",
            "step": step,
            "eval/rewards/chosen": 0.1,
            "eval/loss/text": 0.6,
            "eval/image_dependence": 1.234,
        }
        for step in (0, 20)
    ]
    write_lines(tmp_path / "run" / "metrics.jsonl", [*measured, *metrics()])
    reader = Reader(write_report(tmp_path / "run"))
    assert {"Rewards of held-out pairs", "Loss of held-out pairs", "Image dependence", "1.23", "0.700"} <= {
        *reader.texts
    }


def test_a_run_folder_that_is_still_being_written_has_its_final_name(tmp_path):
    write_lines(tmp_path / "run.partial" / "metrics.jsonl", metrics())
    reader = Reader(write_report(tmp_path / "run.partial"))
    assert "run · mfpo report" in reader.texts
    assert "partial" not in reader.text


def test_texts_of_data_and_models_are_texts(tmp_path):
    records = [make_record(0, text=f"{HOSTILE} runs.", question=HOSTILE, keyword=HOSTILE)]
    data = write_dataset(tmp_path / HOSTILE.replace("/", "|"), records)
    (data / "summary.json").write_text(json.dumps({"read": 1, "reasons": {HOSTILE: 1}}))
    run = write_demo(tmp_path / "demo", base=HOSTILE, text=HOSTILE, question=HOSTILE, setting=HOSTILE)
    write_lines(run / "mfpo" / "metrics.jsonl", metrics(stage_names=(HOSTILE, "hard")))
    for page, scripts, shown in ((inspect(data), 1, 5), (write_report(run), 0, 6)):
        reader = Reader(page)
        assert reader.tags.count("script") == scripts
        assert reader.tags.count("style") == 1
        assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
        assert "x" not in reader.values("src")
        assert reader.text.count(HOSTILE) >= shown


def test_same_folder_gives_the_same_pages(tmp_path):
    data = write_dataset(tmp_path / "built", [make_record(0), make_record(1)])
    run = write_demo(tmp_path / "demo")
    assert inspect(data).read_bytes() == inspect(data).read_bytes()
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_regions_are_drawn_on_their_own_image_of_a_record(tmp_path):
    record = make_record(0)
    for name in ("images", "rejected_images"):
        record[name] = record[name] * 2
    record["regions"][0]["image"] = 1
    page = inspect(write_dataset(tmp_path / "built", [record]))
    sources = Reader(page).values("src")
    assert len(sources) == 6
    assert sources[0] == sources[1]
    assert sources[3] != sources[4]
    assert "original, 1 of 2 mno region found" in Reader(page).text.replace("\n", "").replace("  ", "")


def test_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(MfpoError, match=r"neither metrics\.jsonl nor results\.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(MfpoError, match=r"results\.json: it has no models"):
        write_report(tmp_path)


def test_folder_without_shards_is_an_error(tmp_path):
    with pytest.raises(MfpoError, match="no Parquet shards"):
        inspect(tmp_path)


def test_broken_metrics_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n')
    with pytest.raises(MfpoError, match=r"metrics\.jsonl, line 2: is not valid JSON"):
        write_report(tmp_path)


def test_caption_of_an_image_without_truth_is_an_error(tmp_path):
    run = write_demo(tmp_path / "demo")
    write_lines(run / "heldout" / "annotations.jsonl", [{"image_id": "7", "objects": ["dog"]}])
    with pytest.raises(MfpoError, match=r"no line has the image_id '000007\.png'"):
        write_report(run)


def test_other_line_ends_of_unicode_end_no_line(tmp_path):
    run = write_demo(tmp_path / "demo")
    for file in (run / "answers").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        texts = [json.dumps(row | {"text": "A dog.\u2028A cat.\x85"}, ensure_ascii=False) for row in rows]
        file.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    assert "\u2028A" in write_report(run).read_text(encoding="utf-8")
