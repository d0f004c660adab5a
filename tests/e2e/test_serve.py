"""`niblick serve`: the `openai` client works unchanged, texts do not disturb each other, and what
clients do wrong is told in one object.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest

from niblick.errors import NiblickError
from niblick.serve import app
from niblick.serve.app import ServeOptions
from served import serving, small_model

LONG = {"extra_body": {"across_documents": True}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(model):
    with serving(model, slots=4, queue=64, most_tokens=2000, most_prompt=500, threads=1) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as found:
        yield found


def ask(server, body, method="POST", path="/v1/completions", **headers):
    """Status, headers and document of a raw request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    if "content_type" not in headers and method == "POST":
        headers["content_type"] = "application/json"
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, data, fields)
    answer = connection.getresponse()
    found = answer.read()
    connection.close()
    kind = answer.getheader("content-type", "")
    return answer, json.loads(found) if kind == "application/json" else found


def test_models_are_listed_and_found_by_name(client):
    (only,) = client.models.list().data
    assert only.id == "token-shift" and client.models.retrieve(only.id).owned_by == "niblick"
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        client.completions.create(model="other", prompt="a")


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_text_is_the_models_own_whatever_else_runs(client, model, top_p):
    orders = [
        {"prompt": "añ日🐎"[: i % 5] * (1 + 7 * (i % 3)), "max_tokens": 5 + 9 * i, "seed": i}
        for i in range(16)
    ]
    own = {"temperature": 0.9, "top_p": top_p}

    def served(order):
        if order["seed"] % 2:
            found = client.completions.create(model="token-shift", **order, **own, **LONG)
            return found.choices[0].text
        events = client.completions.create(model="token-shift", stream=True, **order, **own, **LONG)
        return "".join(event.choices[0].text for event in events)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(served, orders))
    assert found == [model.generate(**order, **own, across_documents=True) for order in orders]


def test_texts_of_one_request_draw_from_seeds_one_after_the_other(client, model):
    found = client.completions.create(
        model="token-shift", prompt=["ab", "c"], n=3, seed=7, max_tokens=9, **LONG
    )
    assert [choice.index for choice in found.choices] == list(range(6))
    wanted = [
        model.generate(p, seed=7 + i, max_tokens=9, temperature=1, across_documents=True)
        for p in ("ab", "c")
        for i in range(3)
    ]
    assert [choice.text for choice in found.choices] == wanted
    assert found.usage.prompt_tokens == 3 + 2 and found.usage.completion_tokens == 54


def test_a_document_that_ends_and_a_stop_string_finish_a_text(client, model):
    whole = model.generate("x", seed=3, temperature=1, max_tokens=60, across_documents=True)
    stop = whole[10:12]
    for stream in (False, True):
        found = client.completions.create(
            model="token-shift",
            prompt="x",
            seed=3,
            max_tokens=60,
            stop=[stop],
            stream=stream,
            **LONG,
        )
        pieces = list(found) if stream else [found]
        assert "".join(p.choices[0].text for p in pieces) == whole[: whole.index(stop)]
        assert pieces[-1].choices[0].finish_reason == "stop"
    ending = next(s for s in range(500) if len(model.generate("", seed=s, temperature=1)) < 100)
    found = client.completions.create(
        model="token-shift", prompt="", seed=ending, max_tokens=256
    ).choices[0]
    assert found.finish_reason == "stop"
    assert found.text == model.generate("", seed=ending, temperature=1)


def test_echo_scores_a_prompt_as_the_model_does(client, model):
    text = "The river añ日"
    ids = model.tokenizer.encode_document(text)
    found = client.completions.create(
        model="token-shift", prompt=text, max_tokens=0, echo=True, logprobs=3
    ).choices[0]
    assert found.text == text and found.finish_reason == "length"
    nats = -np.array(found.logprobs.token_logprobs)
    assert np.abs(nats - model.nll(ids)).max() < 1e-5
    assert found.logprobs.tokens[:3] == ["T", "h", "e"]
    assert found.logprobs.tokens[-1] == "bytes:\\xa5"
    assert found.logprobs.text_offset[:3] == [0, 1, 2]
    for own, others in zip(found.logprobs.token_logprobs, found.logprobs.top_logprobs, strict=True):
        values = sorted(others.values(), reverse=True)
        assert 3 <= len(values) <= 4 and own in values and math.exp(sum(values[:1])) <= 1


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_likelihoods_are_those_of_one_answer(client, echo):
    order = {"prompt": "ab", "max_tokens": 30, "seed": 2, "logprobs": 2, "echo": echo, **LONG}
    whole = client.completions.create(model="token-shift", **order).choices[0]
    events = list(client.completions.create(model="token-shift", stream=True, **order))
    assert "".join(event.choices[0].text for event in events) == whole.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        told = [each for e in events for each in getattr(e.choices[0].logprobs, name)]
        assert told == getattr(whole.logprobs, name)
    assert len(whole.logprobs.tokens) == 30 + 2 * echo


def test_token_ids_are_read_as_they_are_and_usage_comes_last(client, model):
    ids = model.tokenizer.encode_document("ab").tolist()
    order = {"seed": 1, "max_tokens": 12, **LONG}
    text = client.completions.create(model="token-shift", prompt="ab", **order).choices[0].text
    events = list(
        client.completions.create(
            model="token-shift",
            prompt=ids,
            stream=True,
            stream_options={"include_usage": True},
            **order,
        )
    )
    assert "".join(e.choices[0].text for e in events if e.choices) == text
    assert events[-1].choices == [] and events[-1].usage.total_tokens == 3 + 12


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "must be a JSON object"),
        ({"prompt": 3}, "prompt must be a text"),
        ({"prompt": []}, "0 prompts"),
        ({"prompt": [300]}, "token ids are 0 to 259"),
        ({"prompt": [[1], []]}, "one at least"),
        ({"prompt": [10**30]}, "token ids are 0 to 259"),
        ({"prompt": "a" * 600}, "reads at most 500"),
        ({"prompt": "\ud800"}, "lone surrogate"),
        ({"max_tokens": 10**20}, "writes at most 2,000"),
        ({"max_tokens": -1}, "max_tokens -1"),
        ({"max_tokens": "5"}, "max_tokens '5'"),
        ({"temperature": -1}, "temperature -1"),
        ({"temperature": 1e400}, "temperature"),
        ({"top_p": 0}, "top_p 0"),
        ({"n": 0}, "n 0"),
        ({"n": 100, "prompt": ["a", "b"]}, "accepted are 1 to 128"),
        ({"logprobs": 21}, "logprobs 21"),
        ({"stop": ""}, "stop: accepted"),
        ({"stop": ["a"] * 17}, "stop: accepted"),
        ({"best_of": 2}, "best_of is not offered"),
        ({"presence_penalty": 1}, "presence_penalty is not offered"),
        ({"suffix": "x"}, "suffix is not offered"),
        ({"stream_options": {}}, "goes with stream"),
        ({"<script>": 1}, "unknown argument '<script>'"),
        ({"seed": 1.5}, "seed 1.5"),
        (b'{"\\ud800": 1}', "valid Unicode"),
        ({"stream": True, "stream_options": {"foo": 1}}, "unknown argument 'stream_options.foo'"),
        (
            {"prompt": "a" * 400, "n": 128, "max_tokens": 0, "echo": True, "logprobs": 20},
            "likelihoods in one answer; accepted are 1,048,576",
        ),
    ],
)
def test_wrong_input_gets_one_error_object(server, body, told):
    answer, found = ask(server, body)
    assert answer.status == 400
    assert set(found["error"]) == {"message", "type", "param", "code"}
    assert found["error"]["type"] == "invalid_request_error"
    assert told in found["error"]["message"] and "\n" not in found["error"]["message"]


def test_other_methods_paths_types_and_sizes_are_refused(server):
    assert ask(server, None, "GET")[0].status == 405
    assert ask(server, None, "GET", "/nowhere")[1]["error"]["message"].startswith("there is")
    assert ask(server, {}, content_type="text/plain")[0].status == 415
    assert ask(server, b"x" * (1 << 20 | 1))[0].status == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:80"}, 421),
        ({"host": "localhost"}, 200),
        ({"host": "127.0.0.1:9"}, 200),
        ({"host": "[::1]:9"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_requests_for_others_and_from_others_are_refused(server, headers, status):
    answer, _ = ask(server, None, "GET", "/v1/models", **headers)
    assert answer.status == status
    assert answer.getheader("access-control-allow-origin") is None
    assert "default-src 'none'" in answer.getheader("content-security-policy")


def test_a_key_is_asked_for_where_one_is_set(model):
    with serving(model, slots=1, threads=1, api_key="s3cret") as found:
        base = f"{found.address}/v1"
        with openai.OpenAI(base_url=base, api_key="s3cret", max_retries=0) as right:
            assert right.completions.create(model="token-shift", prompt="a", max_tokens=1).usage
        with (
            openai.OpenAI(base_url=base, api_key="other", max_retries=0) as wrong,
            pytest.raises(openai.AuthenticationError, match="missing or wrong"),
        ):
            wrong.models.list()
        for path, status in (("/metrics", 401), ("/card", 401), ("/healthz", 200), ("/", 200)):
            assert ask(found, None, "GET", path)[0].status == status


def test_another_host_needs_a_key_and_values_are_bounded():
    with pytest.raises(NiblickError, match="give --api-key"):
        ServeOptions(host="0.0.0.0")
    for wrong in ({"port": 70_000}, {"slots": 0}, {"queue": -1}, {"threads": 0}, {"api_key": ""}):
        with pytest.raises(NiblickError, match=r"accepted are|must not be empty"):
            ServeOptions(**wrong)
    assert ServeOptions(host="0.0.0.0", api_key="k").host == "0.0.0.0"


def test_a_full_queue_says_when_to_come_back(model):
    with serving(model, slots=1, threads=1, queue=1, most_tokens=1 << 20) as found:
        body = {"prompt": ["a", "b"], "max_tokens": 1}
        assert ask(found, body)[0].status == 200
        answer, told = ask(found, {**body, "prompt": ["a", "b", "c"]})
        assert answer.status == 400 and "holds 2 at once" in told["error"]["message"]
        with socket.create_connection(("127.0.0.1", found.port)) as other:
            _send(other, {"max_tokens": 1 << 20, "across_documents": True})
            while not found.service.batcher.running:
                pass
            answer, told = ask(found, body)
        assert answer.status == 429 and int(answer.getheader("retry-after")) >= 1
        assert told["error"]["type"] == "rate_limit_error"


def _send(connection, body):
    data = json.dumps(body).encode()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(data) + data
    )


def test_connections_that_bring_no_request_are_closed(model, monkeypatch):
    monkeypatch.setattr(app, "BODY_SECONDS", 0.5)
    with serving(model, slots=1, threads=1) as found:
        place = ("127.0.0.1", found.port)
        with (
            socket.create_connection(place, 20) as silent,
            socket.create_connection(place, 20) as slow,
            socket.create_connection(place, 20) as busy,
        ):
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
            _send(busy, {"max_tokens": 2000, "across_documents": True})
            assert silent.recv(10) == b"" and slow.recv(10) == b""
            assert busy.recv(12) == b"HTTP/1.1 200"


def test_a_text_that_is_cut_off_by_the_end_of_the_server_says_so(model, tmp_path):
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    command = [sys.executable, "-m", "niblick", "serve", str(model.path), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--drain-seconds", "1", "--max-tokens", "1000000", "--slots", "2"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())[1])
    body = {"max_tokens": 1000000, "across_documents": True}
    with (
        socket.create_connection(("127.0.0.1", port), 60) as whole,
        socket.create_connection(("127.0.0.1", port), 60) as parts,
    ):
        _send(parts, {**body, "stream": True})
        assert parts.recv(1000)
        _send(whole, body)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert b"HTTP/1.1 503" in whole.recv(100)
        told = b"".join(iter(lambda: parts.recv(1 << 16), b""))
    assert b"the server is shutting down" in told[-500:] and told.endswith(b"0\r\n\r\n")
    assert process.wait(30) == 143
    assert "Traceback" not in process.stderr.read()


def _metric(server, name):
    text = ask(server, None, "GET", "/metrics")[1].decode()
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


def test_a_client_that_hangs_up_frees_its_slot(model):
    with serving(model, slots=1, threads=1, most_tokens=1 << 20) as found:
        for stream in (True, False):
            with socket.create_connection(("127.0.0.1", found.port)) as own:
                _send(own, {"max_tokens": 1 << 20, "stream": stream, "across_documents": True})
                while not found.service.batcher.running:
                    pass
                if stream:
                    own.recv(100)
            assert ask(found, {"max_tokens": 3})[0].status == 200
        assert _metric(found, "niblick_hung_up_total") == 2
        assert _metric(found, "niblick_running") == 0
        assert _metric(found, "niblick_slots") == 1
        assert _metric(found, 'niblick_responses_total{code="200"}') == 2


def test_a_signal_drains_and_nothing_is_lost(model, tmp_path):
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-m", "niblick", "serve", str(model.path), "--port", "0"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stderr.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        events = client.completions.create(
            model="token-shift", prompt="a", seed=1, max_tokens=4000, stream=True, **LONG
        )
        text = next(events).choices[0].text
        process.send_signal(signal.SIGTERM)
        text += "".join(event.choices[0].text for event in events)
    assert text == model.generate(
        "a", seed=1, temperature=1, max_tokens=4000, across_documents=True
    )
    assert process.wait(30) == 143
    assert process.stderr.read() == "niblick: stopped by SIGTERM\n"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5)
