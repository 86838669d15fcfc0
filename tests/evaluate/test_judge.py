"""The judge against a real HTTP server that misbehaves on purpose, and against a model under `transformers serve`."""

import json
import logging
import re
import socket
import threading
import time

import pytest

from mfpo.answer.judge import Judge, JudgeSettings, Template, read_template
from mfpo.answer.openai_client import longest_answer, open_client, side_by_side
from mfpo.errors import MfpoError, SettingError

pytest.importorskip("openai", reason="judges need the openai package: pip install 'mfpo[judge]'")

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def number(reply):
    return int(reply) if reply.isdecimal() else None


def length(prompt):
    return str(len(prompt))


def prompts(*texts):
    return {f"q{i}": [{"role": "user", "content": text}] for i, text in enumerate(texts)}


def judge(server, folder, **settings):
    return Judge(JudgeSettings(model="judge-1", endpoint=server.url, **settings), folder / "cache.jsonl")


def readings(asked, texts):
    verdicts = asked.ask(prompts(*texts), number, temperature=0.0, max_tokens=32)
    return [verdict.reading for verdict in verdicts.values()]


def test_each_question_gets_its_own_verdict_and_tokens_and_cost_are_counted(fake_server, tmp_path):
    texts = ["x" * count for count in range(1, 41)]
    with fake_server(length) as server:
        asked = judge(server, tmp_path, prompt_price=30.0, completion_price=60.0)
        assert readings(asked, texts) == list(range(1, 41))
    assert server.bodies[0] == {
        "model": "judge-1",
        "messages": [{"role": "user", "content": server.bodies[0]["messages"][0]["content"]}],
        "temperature": 0.0,
        "max_tokens": 32,
    }
    report = asked.report()
    assert (report["asked"], report["prompt_tokens"], report["completion_tokens"]) == (40, 4000, 400)
    assert report["cost"] == pytest.approx(4000 * 30e-6 + 400 * 60e-6)
    assert (report["answered_by"], report["without_token_count"]) == (["judge-1"], 0)
    assert server.headers[0]["authorization"] == "Bearer none"


def test_without_prices_there_are_tokens_but_no_cost(fake_server, tmp_path):
    with fake_server(length, ["no_usage"]) as server:
        asked = judge(server, tmp_path, prompt_price=30.0, concurrency=1)
        readings(asked, ["a", "b"])
    report = asked.report()
    assert (report["prompt_tokens"], report["without_token_count"], report["cost"]) == (100, 1, None)


def test_questions_are_asked_at_the_same_time_but_not_more_than_wanted(fake_server, tmp_path):
    def slowly(prompt):
        time.sleep(0.1)
        return "1"

    with fake_server(slowly) as server:
        readings(judge(server, tmp_path, concurrency=3), [str(i) for i in range(12)])
    assert server.most == 3


def test_a_rerun_costs_nothing(fake_server, tmp_path):
    with fake_server(length) as server:
        first = readings(judge(server, tmp_path), ["a", "bb", "a"])
        assert len(server.bodies) == 2  # equal prompts are asked once
        again = judge(server, tmp_path)
        assert readings(again, ["a", "bb", "a"]) == first == [1, 2, 1]
        assert len(server.bodies) == 2
        report = again.report()
        assert (report["asked"], report["cached"], report["prompt_tokens"]) == (0, 2, 0)


@pytest.mark.parametrize("change", ["model", "messages", "parameters"])
def test_another_model_prompt_or_parameter_is_another_question(fake_server, tmp_path, change):
    with fake_server(length) as server:
        judge(server, tmp_path).ask(prompts("a"), number, temperature=0.0, max_tokens=32)
        settings = JudgeSettings(model="judge-2" if change == "model" else "judge-1", endpoint=server.url)
        Judge(settings, tmp_path / "cache.jsonl").ask(
            prompts("b" if change == "messages" else "a"),
            number,
            temperature=0.5 if change == "parameters" else 0.0,
            max_tokens=32,
        )
    assert len(server.bodies) == 2


def test_a_killed_run_goes_on(fake_server, tmp_path):
    texts = ["x" * count for count in range(1, 7)]
    with fake_server(length) as server:
        readings(judge(server, tmp_path), texts)
        cache = tmp_path / "cache.jsonl"
        lines = cache.read_bytes().splitlines(keepends=True)
        cache.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # killed while it wrote the fourth
        server.bodies.clear()
        assert readings(judge(server, tmp_path), texts) == [1, 2, 3, 4, 5, 6]
        assert len(server.bodies) == 3
        assert len({json.loads(line)["key"] for line in cache.read_text().splitlines()}) == 6


def test_what_was_judged_before_the_endpoint_failed_is_kept(fake_server, tmp_path):
    texts = ["a", "bb", "ccc", "dddd"]
    with fake_server(length) as server:
        well = server.well
        server.well = lambda request, body: (well if len(server.bodies) <= 2 else server.telltale)(request, body)
        with pytest.raises(MfpoError, match=r"judge, question q2: .*401.*bad key.*the verdicts so far are kept"):
            readings(judge(server, tmp_path, concurrency=1), texts)
        server.well, before = well, len(server.bodies)
        assert readings(judge(server, tmp_path, concurrency=1), texts) == [1, 2, 3, 4]
        assert len(server.bodies) - before == 2


def test_a_question_that_the_endpoint_refuses_is_told_and_the_others_are_judged(fake_server, tmp_path):
    texts = ["a", "bb", "ccc", "bb"]
    with fake_server(length) as server:
        well = server.well
        server.well = lambda request, body: (server.bad_request if "bb" in str(body) else well)(request, body)
        asked = judge(server, tmp_path)
        verdicts = asked.ask(prompts(*texts), number, temperature=0.0, max_tokens=32)
        assert [verdict.reading for verdict in verdicts.values()] == [1, None, 3, None]
        assert ["too long" in str(verdict.fault) for verdict in verdicts.values()] == [False, True, False, True]
        assert list(asked.report()["refused"]) == ["q1", "q3"]
        assert len(server.bodies) == 3  # equal prompts are asked once
        server.well = well
        assert readings(judge(server, tmp_path), texts) == [1, 2, 3, 2]


@pytest.mark.parametrize(
    ("count", "words"),
    [(3, r"refuses all questions.*too long.*send_temperature"), (30, "20 questions in a row failed")],
)
def test_an_endpoint_that_refuses_all_questions_ends_the_run(fake_server, tmp_path, count, words):
    with fake_server(length) as server:
        server.well = server.bad_request
        with pytest.raises(MfpoError, match=words):
            readings(judge(server, tmp_path), ["x" * n for n in range(count)])


def test_a_quota_that_is_used_up_ends_the_run(fake_server, tmp_path):
    def quota(request, body):
        server.send(request, 429, {"error": {"message": "pay", "code": "insufficient_quota"}})

    with fake_server(length) as server:
        server.well = quota
        with pytest.raises(MfpoError, match=r"question q0: .*pay"):
            readings(judge(server, tmp_path, retries=0, concurrency=1), ["a", "b"])


@pytest.mark.parametrize("fault", ["server_error", "cut", "malformed", "page", "no_choices"])
def test_a_fault_that_passes_is_asked_again(fake_server, tmp_path, fault):
    with fake_server(length, [fault, fault]) as server:
        assert readings(judge(server, tmp_path, concurrency=1), ["abc"]) == [3]
    assert len(server.bodies) == 3


def test_the_pauses_grow(fake_server, tmp_path):
    with fake_server(length, ["server_error"] * 3) as server:
        readings(judge(server, tmp_path), ["abc"])
    pauses = [later - sooner for sooner, later in zip(server.times, server.times[1:], strict=False)]
    assert pauses[0] < pauses[1] < pauses[2]


def test_retry_after_is_honoured(fake_server, tmp_path):
    with fake_server(length, ["wait"]) as server:
        assert readings(judge(server, tmp_path), ["abc"]) == [3]
    assert 1.5 <= server.times[1] - server.times[0] < 3


def test_a_slow_reply_is_given_up_and_asked_again(fake_server, tmp_path):
    with fake_server(length, ["slow"]) as server:
        assert readings(judge(server, tmp_path, timeout=0.3), ["abc"]) == [3]
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wait", "429.*lower concurrency"),
        ("server_error", "500.*oops"),
        ("cut", "the connection was cut, 2 times"),
        ("slow", r"no reply within the timeout of 0\.3 s, 2 times"),
        ("malformed", "not with a chat completion"),
        ("page", r"check the address \(it usually ends in /v1\)"),
        ("no_choices", "not with a chat completion"),
    ],
)
def test_a_fault_that_stays_stops_the_run(fake_server, tmp_path, fault, words):
    with fake_server(length, [fault] * 9) as server, pytest.raises(MfpoError, match=f"judge, question q0: .*{words}"):
        readings(judge(server, tmp_path, retries=1, timeout=0.3), ["abc"])
    assert len(server.bodies) in (2, 3)  # tries of the client, or attempts at a verdict
    assert (tmp_path / "cache.jsonl").read_text() == ""


def test_no_server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    asked = Judge(JudgeSettings(model="m", endpoint=url, retries=0), tmp_path / "cache.jsonl")
    with pytest.raises(MfpoError, match="could not be reached"):
        readings(asked, ["a"])


def test_a_verdict_that_cannot_be_read_is_asked_for_again(fake_server, tmp_path):
    with fake_server(length, ["refusal", "refusal"]) as server:
        asked = judge(server, tmp_path, concurrency=1)
        verdict = asked.ask(prompts("abc"), number, temperature=0.0, max_tokens=32)["q0"]
    assert verdict.reading == 3
    assert verdict.replies == ("I'm sorry, but I can't assist with that.",) * 2 + ("3",)
    assert (asked.report()["asked"], asked.report()["asked_again"]) == (3, 2)


def test_what_stays_unreadable_is_asked_three_times_and_then_never_again(fake_server, tmp_path):
    with fake_server(lambda prompt: "no idea") as server:
        for _ in range(2):
            verdict = judge(server, tmp_path).ask(prompts("abc"), number, temperature=0.0, max_tokens=32)["q0"]
            assert verdict.reading is None
            assert verdict.replies == ("no idea",) * 3
    assert len(server.bodies) == 3


def test_a_lone_surrogate_is_asked_and_kept(fake_server, tmp_path):
    with fake_server(lambda prompt: "5 \ud83d") as server:
        verdict = judge(server, tmp_path).ask(
            prompts("cut off: \ud83d"), lambda reply: int(reply[0]), temperature=0.0, max_tokens=32
        )["q0"]
    assert verdict.reading == 5


def everything_in(folder):
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_the_key_appears_nowhere(fake_server, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    caplog.set_level(logging.DEBUG)
    with fake_server(lambda prompt: f"your key is {KEY}", ["server_error"]) as server:
        asked = judge(server, tmp_path, attempts=1)
        verdicts = asked.ask(prompts("a"), number, temperature=0.0, max_tokens=32)
        server.faults.append("telltale")
        with pytest.raises(MfpoError, match=r"401.*OPENAI_API_KEY") as caught:
            asked.ask(prompts("b"), number, temperature=0.0, max_tokens=32)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"  # it was sent, so that it could leak
    fault = caught.value
    assert fault.__context__ is None
    assert fault.__cause__ is None
    places = [str(fault), repr(asked), repr(asked.settings), json.dumps(asked.report()), repr(verdicts), caplog.text]
    places += [everything_in(tmp_path), *capfd.readouterr()]
    assert "your key is [key]" in places[4]
    assert not [place for place in places if KEY in place]


def test_a_short_key_is_not_struck_out_of_what_the_judge_says(fake_server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "4")
    with fake_server(lambda prompt: "4") as server:
        assert readings(judge(server, tmp_path), ["a"]) == [4]
    assert server.headers[0]["authorization"] == "Bearer 4"


@pytest.mark.parametrize("content", [["text"], 7, {"text": "7"}])
def test_a_text_that_is_none_is_no_verdict(fake_server, tmp_path, content):
    with fake_server(lambda prompt: content) as server, pytest.raises(MfpoError, match="not with a chat completion"):
        readings(judge(server, tmp_path), ["abc"])
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://me:secret@host/v1",
        "htp://me:secret@host/v1",
        "me:secret@host/v1",
        "http://host/v1?api_key=secret",
        "ftp://host/v1?secret",
        "http://[::1/v1?key=secret",
    ],
)
def test_an_endpoint_that_holds_a_key_is_refused_without_showing_it(endpoint):
    with pytest.raises(SettingError, match="must hold no key") as caught:
        JudgeSettings(model="m", endpoint=endpoint)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "host/v1",
        "ftp://a/v1",
        "http:///v1",
        "http://[::1/v1",
        "http://h:abc/v1",
        "http://h:99999/v1",
        "http://a b/",
        "http://a/v1\n",
    ],
)
def test_an_endpoint_that_is_no_address_is_refused(endpoint):
    with pytest.raises(SettingError, match="must look like http://localhost:8000/v1"):
        JudgeSettings(model="m", endpoint=endpoint)


@pytest.mark.parametrize("key", ["sk-sécret-0123456789", "sk-secret\n0123456789"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(fake_server, tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with fake_server(length) as server, pytest.raises(SettingError, match="OPENAI_API_KEY holds") as caught:
        readings(judge(server, tmp_path), ["a"])
    assert "0123456789" not in str(caught.value)
    assert not server.bodies


def test_a_fatal_error_ends_at_once(fake_server, tmp_path):
    hangs = threading.Event()
    with fake_server(lambda prompt: hangs.wait(20) and "1") as server:
        server.faults.append("telltale")
        start = time.monotonic()
        with pytest.raises(MfpoError, match="bad key"):
            readings(judge(server, tmp_path), ["a", "b", "c"])
        assert time.monotonic() - start < 5
        hangs.set()


def test_after_a_fatal_error_nothing_more_is_asked():
    """However late the caller hears of the error: the other thread would ask a hundred more."""
    asked = []

    def work(number):
        asked.append(number)
        time.sleep(0.05 if number == 1 else 0.01)
        if number == 1:
            raise MfpoError("fatal")
        return number

    client = open_client("http://localhost:9/v1", retries=0, timeout=1.0)
    replies = side_by_side(client, work, range(1000), 2)
    next(replies)
    time.sleep(1)
    with pytest.raises(MfpoError, match="fatal"):
        list(replies)
    assert len(asked) < 50


def test_two_runs_do_not_write_one_cache(fake_server, tmp_path):
    def reply(prompt):
        if prompt == "a":
            with pytest.raises(MfpoError, match=r"cache\.jsonl: another run is writing it"):
                readings(judge(server, tmp_path), ["b"])
        return "5"

    with fake_server(reply) as server:
        assert readings(judge(server, tmp_path), ["a"]) == [5]
        assert len(server.bodies) == 1
    assert (tmp_path / "cache.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    "values", [{"model": ""}, {"concurrency": 0}, {"timeout": 0.0}, {"retries": -1}, {"attempts": 0}, {"max_tokens": 0}]
)
def test_settings_that_cannot_be(values):
    with pytest.raises(SettingError, match="model" if "model" in values else next(iter(values))):
        JudgeSettings(**{"model": "m"} | values)


@pytest.mark.parametrize("end", ["", "/"])
def test_openai_itself_gets_the_new_name_of_max_tokens(end):
    assert longest_answer("https://api.openai.com/v1" + end, 9) == {"max_completion_tokens": 9}
    assert longest_answer("http://localhost:8000/v1" + end, 9) == {"max_tokens": 9}


def test_a_reasoning_model_gets_its_own_length_and_no_temperature(fake_server, tmp_path):
    with fake_server(length) as server:
        readings(judge(server, tmp_path, send_temperature=False, max_tokens=4000), ["a"])
    assert set(server.bodies[0]) == {"model", "messages", "max_tokens"}
    assert server.bodies[0]["max_tokens"] == 4000


@pytest.mark.parametrize(
    "content", ["{}\n", "no json\n", "[1]\n", "no line end", "[" * 99999 + "\n", "9" * 9999 + "\n"]
)
def test_a_file_that_is_no_cache_is_left_alone(tmp_path, content):
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(MfpoError, match="line 1: is not a verdict"):
        readings(Judge(JudgeSettings(model="m", endpoint="http://127.0.0.1:9/v1", retries=0), path), ["a"])
    assert path.read_text() == content


def test_template_by_name_and_by_order():
    names = ("question", "answer")
    assert Template("Q {question} A {answer} {x}", names).fill("{answer}", "b{}") == "Q {answer} A b{} {x}"
    assert Template('Q {} A {} {"a": 1}', names).fill("{}", "{question}") == 'Q {} A {question} {"a": 1}'


@pytest.mark.parametrize("text", ["{question}", "{}", "{question} {}", "{question} {answer} {answer}", "{} {} {}", ""])
def test_a_template_that_lacks_a_place_is_refused(tmp_path, text):
    path = tmp_path / "prompt.txt"
    path.write_text(text)
    with pytest.raises(MfpoError, match=re.escape("each of {question}, {answer} once, or {} 2 times")) as caught:
        read_template(path, ("question", "answer"))
    assert str(path) in str(caught.value)


def test_a_template_that_cannot_be_read(tmp_path):
    with pytest.raises(MfpoError, match=r"no\.txt: cannot be read"):
        read_template(tmp_path / "no.txt", ("a",))
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MfpoError, match="is not UTF-8 text"):
        read_template(tmp_path / "picture.txt", ("a",))
