"""The page of `mfpo inspect` in a real browser, driven by the DevTools protocol over a pipe."""

import io
import json
import shutil
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mfpo.records import new_record
from mfpo.report import inspect
from mfpo.shards import write_shard

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")

FLAGS = [
    "--headless",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]
COUNT, FALLBACKS, BELOW_5, BELOW_20 = 500, 50, 100, 150  # the other 200 have 20 to 80 % changed


class Browser:
    """One tab. Messages are JSON with a zero byte at the end, on the browser's file descriptors 3 and 4."""

    def __init__(self, profile):
        command = ["sh", "-c", 'exec "$@" 3<&0 4>&1 >/dev/null', "sh", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        # A browser that hangs ends the test, not the whole run.
        self.timer = threading.Timer(180, self.process.kill)
        self.timer.start()
        self.sent, self.unread, self.session, self.events = 0, b"", {}, []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Log", "Runtime"):
            self.send(f"{domain}.enable")

    def read(self):
        while b"\0" not in self.unread:
            more = self.process.stdout.read1()
            assert more, "the browser has ended"
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def send(self, method, **parameters):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters} | self.session
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while (answer := self.read()).get("id") != self.sent:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page):
        """Load a page to its end, and forget what the one before reported."""
        self.events.clear()
        self.send("Page.navigate", url=page.as_uri())
        while "Page.loadEventFired" not in [event["method"] for event in self.events]:
            self.events.append(self.read())

    def run(self, script):
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self):
        """Errors of scripts, messages on the console, and what the content security policy has blocked."""
        wanted = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event["params"] for event in self.events if event["method"] in wanted]

    def close(self):
        self.timer.cancel()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def encode(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return {"bytes": buffer.getvalue(), "path": None}


def photo(rng):
    """480 x 640 pixels with the large shapes and the grain of a photo."""
    shapes = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((640, 480))
    return np.clip(np.asarray(shapes) + rng.normal(0, 8, (480, 640, 1)), 0, 255).astype(np.uint8)


def make_kind(rng, columns, fallback):
    """Images and region of a record; the first `columns` of 640 are inverted, which JPEG smears by a block at most."""
    pixels = photo(rng)
    mask = np.zeros((480, 640), dtype=np.uint8, order="F")
    mask[:, :columns] = 1
    rle = coco_mask.encode(mask)
    region = {"keyword": "dog", "score": 1.0, "mask": rle | {"counts": rle["counts"].decode()}, "image": 0}
    return {
        "images": [encode(pixels)],
        "rejected_images": [encode(np.where(mask[..., None], 255 - pixels, pixels))],
        "regions": [] if fallback else [region],
        "fallback": fallback,
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of 500 records with photos, of which the last ones are fallbacks."""
    rng = np.random.default_rng(0)
    counts = {16: BELOW_5, 64: BELOW_20, 320: COUNT - BELOW_5 - BELOW_20 - FALLBACKS, 640: FALLBACKS}
    records = []
    for columns, count in counts.items():
        kinds = [make_kind(rng, columns, fallback=columns == 640) for _ in range(2)]
        for number in range(count):
            kind = kinds[number % 2]
            source = new_record(
                id=f"r{len(records)}",
                images=kind["images"],
                question="What is there?",
                chosen="A dog runs on the grass.",
                rejected="A dog and a cat run on the grass.",
                source={"dataset": "test", "row": len(records)},
            )
            corruption = {"kind": "region", "schedule": "sigmoid", "step": 500, "seed": 0, "fallback": kind["fallback"]}
            records.append(
                dict(
                    source,
                    rejected_images=kind["rejected_images"],
                    keywords=[{"text": "dog", "score": 1.0}],
                    regions=kind["regions"],
                    corruption=corruption,
                )
            )
    folder = tmp_path_factory.mktemp("built")
    write_shard(records, folder / "train-00000.parquet")
    return inspect(folder)


def test_500_records_with_photos_load_within_3_seconds_and_without_a_complaint(browser, page):
    assert page.stat().st_size > 25e6  # the 16 COCO photos, repeated to 500 records, make a page of 39 MB
    seconds = []
    for _ in range(3):
        browser.open(page)
        seconds.append(browser.run("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
        assert browser.complaints() == []
    # The best of three, so that other work on the machine does not count.
    assert 0 < min(seconds) < 3, seconds
    assert browser.run("document.querySelectorAll('.record').length") == COUNT


def test_images_far_below_the_window_wait(browser, page):
    browser.open(page)
    shown, total = browser.run("[[...document.images].filter(image => image.complete).length, document.images.length]")
    assert total == 3 * COUNT
    assert 0 < shown < total / 4
    browser.run("document.querySelector('.record:last-child').scrollIntoView()")
    browser.send(
        "Runtime.evaluate",
        expression="new Promise(done => { const last = [...document.images].at(-1);"
        "last.complete ? done() : last.addEventListener('load', done); })",
        awaitPromise=True,
    )
    assert browser.run("[...document.images].at(-1).naturalWidth") == 320


def shown_records(browser):
    count, text = browser.run(
        "[document.querySelectorAll('.record').length, document.querySelector('.controls output').textContent]"
    )
    assert text == f"{count} records"
    return count


def press(browser, show):
    """Press a filter's button with the keyboard."""
    browser.run(f"document.querySelector('[data-show={show}]').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.send(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )


def choose(browser, which, label):
    browser.run(
        f"{{ const select = document.querySelectorAll('.controls select')[{which}];"
        f"select.value = [...select.options].find(option => option.text === {json.dumps(label)}).value;"
        "select.dispatchEvent(new Event('change', {bubbles: true})); }"
    )


def test_filters_for_fallback_and_for_area_add_up(browser, page):
    browser.open(page)
    assert shown_records(browser) == COUNT
    press(browser, "fallback")
    assert shown_records(browser) == FALLBACKS
    choose(browser, 0, "80 % and more")
    assert shown_records(browser) == FALLBACKS
    press(browser, "region")
    assert shown_records(browser) == 0
    counts = {"any": COUNT - FALLBACKS, "below 5 %": BELOW_5, "5 to below 20 %": BELOW_20, "20 to below 80 %": 200}
    for label, count in counts.items():
        choose(browser, 0, label)
        assert shown_records(browser) == count
    press(browser, "all")
    choose(browser, 0, "any")
    assert shown_records(browser) == COUNT


def test_order_by_area_and_back(browser, page):
    browser.open(page)
    first = "document.querySelector('.record h3').textContent"
    choose(browser, 1, "most changed first")
    assert int(browser.run(first)[1:]) >= COUNT - FALLBACKS
    choose(browser, 1, "as built")
    assert browser.run(first) == "r0"


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_runs_out_of_the_window(browser, page, width):
    browser.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_foreign_script_on_the_page_is_blocked_and_reported(browser, page, tmp_path):
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text().replace("<main>", "<main><script>document.title = 'run'</script>"))
    browser.open(changed)
    assert browser.run("document.title").endswith("mfpo inspect")
    assert any("Content Security Policy" in json.dumps(complaint) for complaint in browser.complaints())
