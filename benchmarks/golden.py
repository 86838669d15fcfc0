"""What must stay byte for byte while the house is put in order: figures, datasets, models, answers.

    python benchmarks/golden.py OUT                 # writes the files to OUT, and their hashes to OUT/golden.json
    python benchmarks/golden.py OUT --against OTHER/golden.json

It runs the commands whose names other tools read, on the reference data and the picture book. Trained bytes depend on
the processor and on torch, so compare runs of one machine. `--demo` runs the demo, too.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PORT = 8765
REPLIES = {"rating": "Rating: {n}", "scores": "{n} {m}\nBoth are fine.", "objects": '["dog", "red car", "two bears"]'}


def number(text: str, below: int) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % below


class Judge(BaseHTTPRequestHandler):
    """Replies to each prompt by its hash."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = json.dumps(body["messages"])
        kind = next(name for name in REPLIES if body["model"] == name)
        text = REPLIES[kind].format(n=number(prompt, 7), m=number(prompt + ".", 7))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        data = json.dumps(
            {"id": "1", "object": "chat.completion", "created": 0, "model": kind, "choices": [choice]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def mfpo(out: Path, *words: object) -> None:
    run = subprocess.run(
        [Path(sys.executable).with_name("mfpo"), *map(str, words)],
        cwd=out,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "none"},
    )
    if run.returncode not in (0, 3):
        raise SystemExit(f"mfpo {' '.join(map(str, words))}:\n{run.stderr}{run.stdout}")
    print("mfpo", *words, flush=True)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def yes_no(name: str, question: str) -> str:
    return ("Yes", "No", "There is a dog, yes.", "It is not there.", "Maybe")[number(name + question, 5)]


def score(data: Path, out: Path) -> None:
    truth = data / "chair" / "coco2014_objects.jsonl.gz"
    captions = [data / "chair" / f"captions_{name}_greedy.jsonl" for name in ("shikra", "minigpt4", "instructblip")]
    for file in captions:
        mfpo(out, "eval", "chair", file, "--annotations", truth, "--json", f"{file.stem}.json")
    mfpo(
        out, "eval", "compare", *captions[:2], "--benchmark", "chair", "--annotations", truth, "--json", "compare.json"
    )
    folder = out / "pope"
    folder.mkdir()
    for split in ("random", "popular", "adversarial"):
        asked = read_rows(data / "pope" / f"coco_pope_{split}.jsonl")
        rows = [{"question_id": q["question_id"], "text": yes_no(split, str(q["question_id"]))} for q in asked]
        write_rows(folder / f"{split}.jsonl", rows)
    mfpo(out, "eval", "pope", "pope", "--annotations", data / "pope", "--json", "pope.json")
    mfpo(out, "eval", "existence", "pope/random.jsonl", "--annotations", data / "pope" / "coco_pope_random.jsonl",
         "--json", "existence.json")  # fmt: skip
    rows = []
    for entry in json.loads((data / "amber" / "annotations.json").read_text()):
        described = [*entry["truth"][:4], *entry["hallu"][:1]] if entry["type"] == "generative" else []
        said = f"The image shows {', '.join(described)}." if described else yes_no("amber", str(entry["id"]))
        rows.append({"id": entry["id"], "response": said})
    write_rows(out / "amber.jsonl", rows)
    mfpo(out, "eval", "amber", "amber.jsonl", "--annotations", data / "amber", "--json", "amber.json")
    template = data / "mmhal" / "mmhal-bench_answer_template.json"
    write_rows(out / "mmhal.jsonl", [{"question_id": n, "text": f"A dog, a {n}."} for n in range(96)])
    llava = [
        {"question_id": q["question_id"], "text": "A dog."}
        for q in read_rows(data / "llava_bench/qa90_questions.jsonl")
    ]
    write_rows(out / "llava.jsonl", llava)
    described = [row | {"prompt": "Describe it."} for row in read_rows(captions[0])[:40]]
    write_rows(out / "objects.jsonl", described)
    endpoint = ("--endpoint", f"http://127.0.0.1:{PORT}/v1")
    mfpo(out, "eval", "mmhal", "mmhal.jsonl", "--annotations", template, "--judge", "rating", *endpoint,
         "--json", "mmhal.json")  # fmt: skip
    mfpo(out, "eval", "llava-bench", "llava.jsonl", "--annotations", data / "llava_bench", "--judge", "scores",
         *endpoint, "--json", "llava.json")  # fmt: skip
    mfpo(out, "eval", "object-halbench", "objects.jsonl", "--annotations", truth, "--judge", "objects", *endpoint,
         "--json", "objects.json")  # fmt: skip
    mfpo(out, "eval", "object-halbench", "objects.jsonl", "--annotations", truth, "--json", "rules.json")


def build(data: Path, out: Path) -> None:
    photos = data / "photos"
    mfpo(out, "build", photos / "preferences.jsonl", "--images", photos, "--regions",
         f"coco={photos / 'instances.json'}", "--out", "photos")  # fmt: skip
    # The kind of rejected image that makes a method what it is.
    kinds = {"mdpo": "crop", "povid": "global"}
    kinds |= dict.fromkeys(("symmpo", "s-vco", "counterfactual"), "counterfactual")
    for kind in ("region", "crop", "global", "counterfactual"):
        mfpo(out, "build", "picturebook:48", "--out", f"built-{kind}", f"corruption={kind}", "seed=3")
        mfpo(out, "rank", f"built-{kind}", "--model", "picturebook", "--out", f"ranked-{kind}")
    methods = ("mfpo", "dpo", "mdpo", "ddpo", "ha-dpo", "povid", "halva", "eos", "hacl", "chip")
    for method in (*methods, "symmpo", "s-vco", "counterfactual"):
        mfpo(out, "train", f"ranked-{kinds.get(method, 'region')}", "--model", "picturebook", "--out", f"run-{method}",
             f"method={method}", "num_train_epochs=1")  # fmt: skip
    mfpo(
        out,
        "train",
        "ranked-region",
        "--model",
        "picturebook",
        "--out",
        "run-lora",
        "num_train_epochs=1",
        "lora_rank=8",
    )
    mfpo(out, "picturebook", "draw", "--out", "scenes", "--count", "6")
    mfpo(out, "answer", "scenes/captions.jsonl", "--model", "run-mfpo/model", "--images", "scenes", "--out", "a.jsonl")
    mfpo(out, "answer", "scenes/captions.jsonl", "--model", "run-lora/model", "--images", "scenes", "--out", "b.jsonl")


def hashes(out: Path) -> dict[str, str]:
    kept = ("*.json", "*.parquet", "*.safetensors", "a.jsonl", "b.jsonl", "runs/demo/results.json")
    files = sorted(
        {
            file
            for pattern in kept
            for file in (*out.glob(pattern), *out.glob(f"*/{pattern}"), *out.glob(f"*/model/{pattern}"))
        }
    )
    # Names of folders, times and versions are another run's.
    skipped = ("made_by.json", "summary.json", "golden.json", "adapter_config.json", "questions.jsonl")
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes().replace(str(out).encode(), b"")).hexdigest()
        for file in files
        if file.name not in skipped and "seconds" not in file.name
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--against", type=Path, help="golden.json of another run")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the reference data")
    parser.add_argument("--demo", action="store_true", help="run the demo, too")
    arguments = parser.parse_args()
    out, data = arguments.out.resolve(), arguments.data.resolve()
    out.mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    score(data, out)
    build(data, out)
    if arguments.demo:
        mfpo(out, "demo")
    found = hashes(out)
    (out / "golden.json").write_text(json.dumps(found, indent=2) + "\n")
    if arguments.against:
        before = json.loads(arguments.against.read_text())
        names = sorted(before.keys() | found.keys())
        changed = [name for name in names if before.get(name) != found.get(name)]
        print(*changed, f"{len(changed)} of {len(names)} files differ", sep="\n")
        sys.exit(bool(changed))


if __name__ == "__main__":
    main()
