"""Chat completions of an OpenAI-compatible endpoint, as vLLM and others serve them, for the judge and for captions.

The key goes to the url that was given and nowhere else: no redirect is followed, and no message shows it.
"""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeVar

from pydantic import Field, model_validator

from langdc.config import Settings

Value = TypeVar("Value")

SHOWN_LETTERS = 200
MAX_REPLY_BYTES = 1 << 23
MAX_WAIT_SECONDS = 300.0
"""The longest pause that a Retry-After is granted."""
_TRANSIENT, _EVERYWHERE = (408, 409, 425, 429), (401, 403, 404, 405)
_SLOW = 10
"""A reply that trickles in may take as many timeouts."""


class EndpointConfig(Settings):
    """A language model behind an OpenAI-compatible endpoint."""

    url: str = Field(pattern=r"^https?://[^/]")
    """Where the interface begins, as https://server/v1; requests go to its /chat/completions."""
    model: str = Field(min_length=1)
    key_variable: str | None = None
    """The environment variable that holds the key, such as OPENAI_API_KEY; null sends none."""
    options: dict[str, Any] = Field(default={"temperature": 0})
    """Further fields of a request."""
    timeout: float = Field(60.0, gt=0)
    """Seconds of silence after which a request has failed."""
    retries: int = Field(4, ge=0)
    """How often a failed request is repeated."""
    pause: float = Field(1.0, ge=0)
    """Seconds before the first repetition, doubled for each further one; longer where the endpoint asks for it
    (Retry-After)."""
    workers: int = Field(8, gt=0)
    """Requests at a time."""

    @model_validator(mode="after")
    def _without_key(self) -> Self:  # not per field: the message of a field shows its value
        if "@" in self.url or "?" in self.url:
            raise ValueError("url: leave out passwords and queries; key_variable names the variable that holds the key")
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_variable or "KEY"):
            raise ValueError("key_variable is a variable's name, in capital letters; the key itself is its value")
        return self


class EndpointError(ValueError):
    """No usable reply; says where was asked, what came back and what to do. `fatal`: other requests would fail, too."""

    def __init__(self, message: str, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class Transient(ValueError):
    """Trouble that may pass: the request is repeated, after at least `wait` seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class _Unreachable(Transient):
    pass  # no connection, or no answer


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses to follow a redirect, which would hand the key to another server."""

    def redirect_request(self, *args: Any) -> None:
        return None


class Endpoint:
    """A client, for any number of threads; ValueError if the variable of the key is not set."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config, self.url = config, config.url.rstrip("/") + "/chat/completions"
        self._where = f"{self.url} (model {config.model})"
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._headers, self._key, self._unreachable = {"Content-Type": "application/json"}, "", False
        if config.key_variable is not None:
            self._key = os.environ.get(config.key_variable, "").strip()
            if not (self._key.isascii() and self._key.isprintable() and self._key):
                raise ValueError(
                    f"The endpoint's key is to be in the environment variable {config.key_variable}, which is not set "
                    "or holds no key. Set it, or leave key_variable out for an endpoint without a key."
                )
            self._headers["Authorization"] = f"Bearer {self._key}"

    def ask(self, messages: Sequence[Mapping[str, Any]], read: Callable[[str], Value] = str) -> Value:
        """What `read` makes of the reply; EndpointError if none comes, after repetitions with growing pauses.

        `read` raises Transient for a reply that it cannot use. After a request for which the endpoint could not be
        reached, others are tried once, until it answers.
        """
        tries = 1 if self._unreachable else 1 + self.config.retries
        for number in range(tries):
            try:
                return read(self._once(messages))
            except Transient as error:
                reason = error
            if number + 1 < tries:
                time.sleep(max(self.config.pause * 2**number, reason.wait))
        self._unreachable = isinstance(reason, _Unreachable)
        raise EndpointError(f"{self._where}, asked {tries} time(s): {reason}", self._unreachable)

    def _once(self, messages: Sequence[Mapping[str, Any]]) -> str:
        body = json.dumps({"model": self.config.model, "messages": messages, **self.config.options}).encode()
        try:
            with self._open(urllib.request.Request(self.url, body, self._headers), None, self.config.timeout) as reply:
                content = self._content(reply)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Unreachable(f"cannot be reached ({error or type(error).__name__}). Check url and timeout.") from None
        self._unreachable = False
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise Transient(
                f"its reply is no chat completion: {self._shown(content)}. Is this the url of an OpenAI-compatible "
                "interface?"
            )
        return text

    def _content(self, reply: http.client.HTTPResponse) -> bytes:
        """All bytes of a reply, unless they are too many, too slow or cut off."""
        content, last = bytearray(), time.monotonic() + _SLOW * self.config.timeout
        while part := reply.read1(1 << 16):
            content += part
            if len(content) > MAX_REPLY_BYTES:
                raise Transient(f"its reply has more than {MAX_REPLY_BYTES} bytes. Set max_tokens in its options.")
            if time.monotonic() > last:
                raise TimeoutError("the reply trickles in too slowly")
        if reply.length:
            raise http.client.IncompleteRead(bytes(content), reply.length)
        return bytes(content)

    def _refused(self, error: urllib.error.HTTPError) -> Transient | EndpointError:
        """What to raise for a status that is an error."""
        self._unreachable = False
        said = f"HTTP {error.code} {self._cleaned(error.reason)}."
        if error.code in _TRANSIENT or error.code >= 500:
            return Transient(f"{said} Ask again later.", _seconds(error.headers.get("Retry-After")))
        if 300 <= error.code < 400:
            said += f" It redirects to {self._cleaned(error.headers['Location'])}; give that if it may have the key."
        with suppress(OSError, http.client.HTTPException):
            said += f" It says {self._shown(error.read(1 << 12))}."
        fatal = error.code < 400 or error.code in _EVERYWHERE
        return EndpointError(f"{self._where}: {said} Check url, model and key.", fatal)

    def _shown(self, content: bytes) -> str:
        return repr(self._cleaned(content.decode("utf-8", "replace"))[:SHOWN_LETTERS])

    def _cleaned(self, text: object) -> str:
        return str(text).replace(self._key or "\0", "***")


def _seconds(header: str | None) -> float:
    """How long a Retry-After header, in seconds or a date, asks to wait; 0 where it says nothing."""
    wait = 0.0
    with suppress(ValueError, TypeError, OverflowError):
        wait = parsedate_to_datetime(header or "").timestamp() - time.time()
    with suppress(ValueError):
        wait = float(header or "0")
    return min(max(0.0, wait), MAX_WAIT_SECONDS)
