"""What signs a webhook, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fdhandoff.system.environment import WEBHOOK_SECRET
from fdhandoff.webhook import NotSent, secret_of, signature

if TYPE_CHECKING:
    from pathlib import Path


def test_it_signs_as_standard_webhooks_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        WEBHOOK_SECRET, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    )  # the example that its libraries test with
    signed = signature(secret_of(""), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_is_in_a_file_or_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text("from the file\n")
    assert secret_of("") == b""
    monkeypatch.setenv(WEBHOOK_SECRET, "from the environment")
    assert secret_of("") == b"from the environment"
    assert secret_of(str(file)) == b"from the file"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b" \n", "there is no secret in"),
        (b"\xff\xfe", "the secret can't be read from"),
        (b"whsec_!", "what follows is not base64"),
        (None, "the secret can't be read from .*: No such file"),
    ],
)
def test_a_secret_that_is_none_is_said_and_nothing_is_sent_unsigned(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(NotSent, match=sentence):
        secret_of(str(file))
