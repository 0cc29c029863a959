"""A judge behind an endpoint that is busy, broken, slow or babbling; the key stays where it is."""

from __future__ import annotations

import json

import pytest

from codecvit.llava.mcq.records import whole_lines
from codecvit.llava.open_ended import endpoint as endpoint_module
from codecvit.llava.open_ended import verb
from codecvit.llava.open_ended.batch import Batches
from codecvit.llava.open_ended.endpoint import ChatJudge, Endpoint
from codecvit.llava.open_ended.judges import BrokenJudge, JudgeError
from codecvit.llava.open_ended.predictions import read_jobs

from .judge_made import SECRET, completion, qa_rows, serving, slowly, write_predictions

YES = '{"pred": "yes", "score": 5}'


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that were waited for, without waiting."""
    waited = []
    monkeypatch.setattr(endpoint_module.time, "sleep", waited.append)
    return waited


@pytest.fixture
def job(tmp_path):
    return read_jobs(write_predictions(tmp_path / "one.jsonl", qa_rows(1)))[0][0]


def judge_at(server, **options):
    return ChatJudge("m", Endpoint(server.url, pause=0.001, **options))


def test_a_request_is_what_a_chat_endpoint_takes(job):
    with serving(lambda body, number: YES) as server:
        judge = ChatJudge("m", Endpoint(server.url), {"max_tokens": None, "seed": 1})
        reply = judge.ask(job)
        (path, headers, raw), = server.requests  # fmt: skip
    body = json.loads(raw)
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {SECRET}"
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert (body["model"], body["temperature"], body["seed"]) == ("m", 0, 1)
    assert "max_tokens" not in body and SECRET not in raw.decode()
    assert (reply.text, reply.model, reply.tokens) == (YES, "made-2026", (100, 9))


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_busy_and_broken_endpoints_are_asked_again(job, pauses, status):
    script = lambda body, number: (status, {}, b"busy") if number < 3 else YES  # noqa: E731
    with serving(script) as server:
        assert judge_at(server).ask(job).text == YES
    assert len(server.requests) == 4 and len(pauses) == 3
    assert pauses[0] < pauses[1] < pauses[2]


def test_retries_are_bounded_and_heed_the_endpoints_word(job, pauses):
    with (
        serving(lambda body, number: (429, {"Retry-After": "7"}, b"slow down")) as server,
        pytest.raises(JudgeError, match="4 times .* HTTP 429: slow down"),
    ):
        judge_at(server, tries=4).ask(job)
    assert len(server.requests) == 4 and pauses == [7.0] * 3
    pauses.clear()
    with (
        serving(lambda body, number: (503, {"Retry-After": "86400"}, b"")) as server,
        pytest.raises(JudgeError),
    ):
        judge_at(server, tries=2).ask(job)
    assert pauses == [60.0]


@pytest.mark.parametrize(
    "content",
    [b"<html>proxy</html>", b"", b"null", b"{}", b'{"choices": []}', b"\xff\xfe", b"[" * 100_000,
     json.dumps(completion(["x"])).encode()],
)  # fmt: skip
def test_garbage_instead_of_a_completion_is_asked_again(job, pauses, content):
    with serving(lambda body, number: (200, {}, content) if number == 0 else YES) as server:
        assert judge_at(server).ask(job).text == YES
        assert len(server.requests) == 2


def test_no_content_is_no_reply(job):
    with serving(lambda body, number: None) as server:
        assert judge_at(server).ask(job).text is None


def test_slow_endpoints_run_into_the_time_limit(job, pauses):
    with serving(lambda body, number: slowly(0.5, YES) if number == 0 else YES) as server:
        assert judge_at(server, timeout=0.15).ask(job).text == YES
        assert len(server.requests) == 2


def test_an_endpoint_that_drips_runs_into_it_too(job, pauses):
    with serving(lambda body, number: YES) as server:
        server.piece = 20  # every 0.05 s, so that no single read is late
        with pytest.raises(JudgeError, match="no whole answer in 0.2 s"):
            judge_at(server, timeout=0.2, tries=1).ask(job)
        server.piece = 1 << 30
        assert judge_at(server, timeout=0.2, tries=1).ask(job).text == YES


def test_nobody_there(job, pauses):
    with serving(lambda body, number: YES) as server:
        pass
    with pytest.raises(JudgeError, match="2 times without an answer"):
        judge_at(server, tries=2).ask(job)


@pytest.mark.parametrize(
    ("status", "content"),
    [(401, b"Incorrect API key provided: " + SECRET.encode()), (403, b""), (404, b"no such model"),
     (302, b""), (429, b'{"error": {"code": "insufficient_quota"}}')],
)  # fmt: skip
def test_what_no_request_will_mend_stops_at_once_and_tells_no_key(job, pauses, status, content):
    elsewhere = {"Location": "http://127.0.0.1:9/v1/chat/completions"} if status == 302 else {}
    with serving(lambda body, number: (status, elsewhere, content)) as server:
        with pytest.raises(BrokenJudge, match=f"HTTP {status}") as caught:
            judge_at(server).ask(job)
        assert len(server.requests) == 1
    assert SECRET not in str(caught.value)


def test_a_request_that_is_refused_costs_its_answer_alone(job):
    with serving(lambda body, number: (400, {}, b"content filter")) as server:
        with pytest.raises(JudgeError, match="HTTP 400: content filter"):
            judge_at(server).ask(job)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/v1", "must be such as"),
        ("file:///etc/passwd", "must be such as"),
        ("localhost:8000", "must be such as"),
        (f"http://user:{SECRET}@host/v1", "user name or a query"),
        (f"http://host/v1?key={SECRET}", "user name or a query"),
    ],
)
def test_impossible_urls(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        Endpoint(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("key", [f"{SECRET}\nX-Header: 1", f"{SECRET} x", f"{SECRET}é"])
def test_impossible_keys_are_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="characters that no key has") as caught:
        Endpoint()
    assert SECRET not in str(caught.value)


def test_requests_hold_neither_the_key_nor_other_messages():
    endpoint = Endpoint("http://localhost/v1")
    with pytest.raises(ValueError, match="holds the key") as caught:
        ChatJudge("m", endpoint, {"api_key": SECRET})
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="messages is not for you"):
        ChatJudge("m", endpoint, {"messages": []})
    with pytest.raises(ValueError, match="timeout = 0 must be"):
        Endpoint("http://localhost/v1", timeout=0)


def test_a_local_endpoint_needs_no_key(job, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(lambda body, number: YES) as server:
        assert judge_at(server).ask(job).text == YES
        assert "Authorization" not in server.requests[0][1]
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        Endpoint("https://api.openai.com/v1")


def run_verb(server, tmp_path, monkeypatch, *options, count=12):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    path = write_predictions(tmp_path / "p.jsonl", qa_rows(count))
    return verb.main([str(path), "--judge", "openai:m", "--out", str(tmp_path / "out"), *options])


def told(body):
    return json.loads(body["messages"][1]["content"])


def opinion(body):
    right = told(body)["candidate"].endswith(told(body)["reference"])
    return json.dumps({"pred": "yes" if right else "no", "score": 5 * right})


def test_a_whole_run_over_a_bad_endpoint(tmp_path, monkeypatch, capsys, pauses):
    """429, 500, garbage, prose and an echo of the key; then a rerun for what failed."""

    def script(body, number):
        name = told(body)["reference"]
        if name == "thing1" and number == 0:
            return 429, {}, b"wait"
        if name == "thing2" and number < 2:
            return 500, {}, b"<html>oops</html>"
        if name == "thing3":
            return f"I rate it 4.8, {SECRET}"
        if name == "thing4":
            return 400, {}, f"refused {SECRET}".encode()
        if name == "thing5" and number == 0:
            return 200, {}, b"garbage"
        return opinion(body)

    with serving(script) as server:
        assert run_verb(server, tmp_path, monkeypatch, "--concurrency", "4") == 1
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["statuses"] == {"ok": 10, "unparsed": 1, "judge_error": 1, "unanswered": 0}
        assert summary["aspects"]["qa"]["yes"] == 7 and summary["models"] == ["made-2026"]
        assert summary["run"]["judge"]["id"] == "openai:m"
        assert server.seen[next(t for t in server.seen if "thing3" in t)] == 3  # bounded
        before = len(server.requests)
        server.script = lambda body, number: opinion(body)
        assert run_verb(server, tmp_path, monkeypatch) == 0
        assert len(server.requests) == before + 1
        assert "thing4" in server.requests[-1][2].decode()
    captured = capsys.readouterr()
    texts = [p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(texts) >= 4 and not any(SECRET in text for text in [*texts, *captured])
    records, _ = whole_lines(tmp_path / "out" / "results.jsonl")
    assert records[3]["reply"] == "I rate it 4.8, ***" and records[4]["attempt"] == 1


def test_requests_run_side_by_side_but_no_more_than_asked_for(tmp_path, monkeypatch):
    with serving(lambda body, number: slowly(0.05, opinion(body))) as server:
        assert run_verb(server, tmp_path, monkeypatch, "--concurrency", "3") == 0
        assert server.most_at_once == 3


def test_batches(tmp_path, monkeypatch, capsys, pauses):
    with serving(lambda body, number: opinion(body)) as server:
        assert run_verb(server, tmp_path, monkeypatch, "--batch") == 0
        assert len(server.batches) == 1 and pauses == [60.0]
        assert "accuracy 0.667" in capsys.readouterr().out
        assert run_verb(server, tmp_path, monkeypatch, "--batch") == 0
        assert len(server.batches) == 1
    assert not any(SECRET in p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_a_run_that_died_while_it_waited_only_looks_again(tmp_path, monkeypatch):
    def die(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(endpoint_module.time, "sleep", die)
    with serving(lambda body, number: opinion(body)) as server:
        with pytest.raises(KeyboardInterrupt):
            run_verb(server, tmp_path, monkeypatch, "--batch")
        assert run_verb(server, tmp_path, monkeypatch, "--batch") == 0
        assert len(server.batches) == 1 and len(server.files) == 2
        # Died after the lines were written, before the batch was noted as done.
        state = json.loads((tmp_path / "out" / "batches.json").read_text())
        state[0]["done"] = False
        (tmp_path / "out" / "batches.json").write_text(json.dumps(state))
        assert run_verb(server, tmp_path, monkeypatch, "--batch") == 0
        assert len(server.batches) == 1


@pytest.mark.parametrize("sent", [False, True])
def test_a_run_that_died_while_it_sent_pays_once(tmp_path, monkeypatch, pauses, sent):
    """Before the batch was made, or after that and before its id was noted."""
    saves = []
    inner = Batches._save

    def save(self):
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt
        inner(self)

    with serving(lambda body, number: opinion(body)) as server:
        if sent:
            monkeypatch.setattr(Batches, "_save", save)
        else:
            monkeypatch.setattr(
                "codecvit.llava.open_ended.batch._identified", lambda content: 1 / 0
            )
        with pytest.raises(KeyboardInterrupt if sent else ZeroDivisionError):
            run_verb(server, tmp_path, monkeypatch, "--batch")
        monkeypatch.undo()
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        monkeypatch.setattr(endpoint_module.time, "sleep", lambda seconds: None)
        assert len(server.batches) == sent
        assert run_verb(server, tmp_path, monkeypatch, "--batch") == 0
        assert len(server.batches) == 1


def test_batches_are_cut_and_what_fails_in_them_is_asked_again(tmp_path, monkeypatch, pauses):
    monkeypatch.setattr("codecvit.llava.open_ended.batch.MOST_LINES", 5)

    def script(body, number):
        if told(body)["reference"] == "thing7" and number == 0:
            return 500, {}, b'{"error": "server"}'
        return opinion(body)

    with serving(script) as server:
        server.open_polls = 0
        assert run_verb(server, tmp_path, monkeypatch, "--batch") == 1
        assert len(server.batches) == 3
        assert run_verb(server, tmp_path, monkeypatch, "--batch") == 0
        assert len(server.batches) == 4
        assert len(server.files[server.batches["batch-3"]["input"]].splitlines()) == 1
