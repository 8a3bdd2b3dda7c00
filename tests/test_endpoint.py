"""The client of OpenAI-compatible endpoints, at a local server that misbehaves; the judge asks through it."""

import socket
import threading
import time
from email.utils import formatdate

import pytest

from langdc import endpoint as client
from langdc.config import check
from langdc.endpoint import Endpoint, EndpointConfig, EndpointError, Transient

HELLO = [{"role": "user", "content": "hello"}]


def connect(url: str, **changes) -> Endpoint:
    tree = {"url": url, "model": "tiny", "timeout": 5, "pause": 0.01, "retries": 2, **changes}
    return Endpoint(check(EndpointConfig, tree, "test"))


def test_a_request_holds_model_messages_and_options(endpoint):
    server = endpoint("hi")
    assert connect(server.url + "/", options={"max_tokens": 3}).ask(HELLO) == "hi"
    assert server.requests == [{"model": "tiny", "messages": HELLO, "max_tokens": 3}]
    assert server.paths == ["/v1/chat/completions"] and "Authorization" not in server.headers[0]


def test_a_reply_that_the_reader_cannot_use_is_asked_for_again(endpoint):
    def number(text: str) -> int:
        if not text.isdigit():
            raise Transient(f"{text!r} is no number.")
        return int(text)

    server = endpoint(lambda count, body: "seven" if count < 3 else "7")
    assert connect(server.url).ask(HELLO, number) == 7 and len(server.requests) == 3
    with pytest.raises(EndpointError, match=r"asked 3 time\(s\): 'seven' is no number"):
        connect(endpoint("seven").url).ask(HELLO, number)


@pytest.mark.parametrize("header", ["1", lambda: formatdate(time.time() + 2.5, usegmt=True)], ids=["seconds", "date"])
def test_a_server_that_says_when_to_come_back_is_obeyed(endpoint, header):
    header = header if isinstance(header, str) else header()
    server = endpoint(lambda count, body: (429, b"slow", {"Retry-After": header}) if count == 1 else "hi")
    begun = time.monotonic()
    assert connect(server.url).ask(HELLO) == "hi"
    assert 1 <= time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("", 0), ("soon", 0), ("-3", 0), ("nan", 0), ("2.5", 2.5), ("1e9", 300), ("inf", 300),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2099 07:28:00 GMT", 300)],
)  # fmt: skip
def test_waits_are_read_and_limited(header: str | None, seconds: float):
    assert client._seconds(header) == seconds


def test_a_reply_without_end_is_cut(endpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "MAX_REPLY_BYTES", 1000)
    with pytest.raises(EndpointError, match="more than 1000 bytes"):
        connect(endpoint("x" * 2000).url, retries=0).ask(HELLO)
    assert connect(endpoint("x" * 500).url).ask(HELLO) == "x" * 500


def test_a_reply_that_trickles_in_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, pytest.raises(OSError):
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
                for _ in range(500):
                    time.sleep(0.05)
                    connection.sendall(b" ")

        threading.Thread(target=trickle, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(EndpointError, match="trickles in too slowly"):
            connect(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.1, retries=0).ask(HELLO)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(("status", "fatal"), [(400, False), (413, False), (401, True), (403, True), (404, True)])
def test_a_refusal_says_why_and_whether_others_would_fail_without_showing_the_key(
    endpoint, monkeypatch: pytest.MonkeyPatch, status: int, fatal: bool
):
    monkeypatch.setenv("SOME_KEY", "secret-123\n")
    server = endpoint((status, b"bad key secret-123, context length is 4096"))
    with pytest.raises(EndpointError, match=r"It says 'bad key \*\*\*, context length is 4096'") as error:
        connect(server.url, key_variable="SOME_KEY").ask(HELLO)
    assert error.value.fatal == fatal and "secret" not in str(error.value)
    assert server.headers[0]["Authorization"] == "Bearer secret-123" and len(server.requests) == 1


def test_garbage_with_the_key_in_it_does_not_show_it(endpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_KEY", "secret-123")
    with pytest.raises(EndpointError, match="no chat completion") as error:
        connect(endpoint(b"<html>secret-123</html>").url, key_variable="SOME_KEY").ask(HELLO)
    assert "secret" not in str(error.value) and not error.value.fatal


@pytest.mark.parametrize("key", ["", " ", "caf\xe9", "two\nlines"])
def test_a_key_that_is_none_is_refused_unseen(monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(ValueError, match="variable SOME_KEY, which is not set or holds no key") as error:
        connect("http://server/v1", key_variable="SOME_KEY")
    assert not key.strip() or key not in str(error.value)
