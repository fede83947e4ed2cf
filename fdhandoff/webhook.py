"""The program that sends one webhook: a child of the master's (``master.helper``). It signs as Standard Webhooks does, so that
any library for that can check it: ``webhook-id`` is the same at each try, ``webhook-timestamp`` the moment of the try, and
``webhook-signature`` "v1," and the base64 of HMAC-SHA256 over "ID.TIMESTAMP.BODY".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException

from .system.environment import WEBHOOK_SECRET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEMA = 1
TRIES = 6
#: Before the second try, and doubled before each further one.
BACKOFF_SECONDS = 0.5
#: For each step of a try: the connection, the request, the answer.
STEP_SECONDS = 10.0
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_ANSWER_FD = 3
_SECRET_MAX = 1 << 16
_ENCODED = "whsec_"


class NotSent(Exception):
    """Why, in one sentence. ``again``: whether to try again makes sense."""

    def __init__(self, why: str, again: bool = False) -> None:
        super().__init__(why)
        self.again = again


def main() -> int:
    os.set_inheritable(_ANSWER_FD, False)
    with open(_ANSWER_FD, "w", encoding="ascii") as out:
        try:
            with open(0, "rb", closefd=False) as file:
                question = json.load(file)
            if question.get("schema") != SCHEMA:
                raise NotSent(
                    f"the question has the schema {question.get('schema')!r}, and this release knows {SCHEMA}"
                )
            send(question["url"], question["body"].encode(), question["id"], secret_of(question["secret"]))
        except (NotSent, OSError) as error:
            answer: dict[str, Any] = {"result": "failed", "error": " ".join(str(error).split())}
        else:
            answer = {"result": "done"}
        out.write(json.dumps({"schema": SCHEMA, **answer}) + "\n")
    return 0


def secret_of(path: str) -> bytes:
    """In that file, or else in the environment; empty where there is none. ``whsec_…`` is base64 behind that, as the libraries
    for such webhooks write it; anything else is itself."""
    if path:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(_SECRET_MAX).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise NotSent(f"the secret can't be read from {path}: {getattr(error, 'strerror', '') or error}") from None
        if not text:
            raise NotSent(f"there is no secret in {path}")
    else:
        text = os.environ.get(WEBHOOK_SECRET, "").strip()
    if not text.startswith(_ENCODED):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(_ENCODED), validate=True)
    except binascii.Error:
        raise NotSent(f"the secret begins with {_ENCODED}, and what follows is not base64") from None


def signature(secret: bytes, number: str, moment: int, body: bytes) -> str:
    """The header's value."""
    signed = f"{number}.{moment}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def send(url: str, body: bytes, number: str, secret: bytes) -> None:
    """Until it is accepted. ``NotSent`` when it is not, or never can be."""
    pause = BACKOFF_SECONDS
    for left in range(TRIES - 1, -1, -1):
        try:
            _try(url, body, number, secret)
        except NotSent as error:
            if not left or not error.again:
                raise
        else:
            return
        time.sleep(pause)
        pause *= 2


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What was signed for one place is not sent to another, nor made a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _try(url: str, body: bytes, number: str, secret: bytes) -> None:
    moment = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "fdhandoff",
        "webhook-id": number,
        "webhook-timestamp": str(moment),
        **({"webhook-signature": signature(secret, number, moment, body)} if secret else {}),
    }
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - the option allows http and https alone
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=STEP_SECONDS):
            return
    except urllib.error.HTTPError as error:
        error.close()
        raise NotSent(f"it answered {error.code}", error.code in _AGAIN) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise NotSent(f"it can't be reached: {getattr(reason, 'strerror', '') or reason}", True) from None
    except ValueError as error:
        raise NotSent(f"it makes no sense as a URL: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
