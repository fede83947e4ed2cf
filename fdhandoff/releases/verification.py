"""Whether an artefact is what its makers released: by a checksum beside it, or by their signature."""

from __future__ import annotations

import hashlib
import os
import subprocess
from hmac import compare_digest

from . import Refused, SourceError
from .sigstore import SUFFIXES, Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    #: (NAME of a file beside the artefact, or empty; else the suffix to the artefact's own name) → its content.
    Beside = Callable[[str, str], bytes]

_ALGORITHMS = {64: "sha256", 128: "sha512"}
_SECONDS = 60.0


class Verification:
    """``how``, as ``--verify`` says it: ``checksum``, ``checksum:NAME``, ``minisign:KEY`` or ``sigstore:IDENTITY ISSUER``."""

    def __init__(self, how: str) -> None:
        self.kind, _, self.argument = how.partition(":")
        if self.kind not in ("checksum", "minisign", "sigstore") or (self.kind != "checksum" and not self.argument):
            raise SourceError(
                f"{how!r} is no way to verify: say checksum, checksum:NAME, minisign:KEY or 'sigstore:IDENTITY ISSUER'"
            )
        self._identity = Identity(self.argument) if self.kind == "sigstore" else None

    def check(self, artefact: Path, beside: Beside) -> None:
        """``Refused`` unless it is."""
        if self._identity is not None:
            self._identity.check(artefact, _either(beside, SUFFIXES))
        elif self.kind == "checksum":
            self._checksum(artefact, beside(self.argument, ".sha256"))
        else:
            self._minisign(artefact, beside("", ".minisig"))

    def _checksum(self, artefact: Path, sums: bytes) -> None:
        wanted = checksum_in(sums.decode("utf-8", "replace"), artefact.name)
        with artefact.open("rb") as file:
            whole = hashlib.new(_ALGORITHMS[len(wanted)])
            while part := file.read(1 << 20):
                whole.update(part)
        if not compare_digest(whole.hexdigest(), wanted):
            raise Refused(f"{artefact.name} is not what its checksum says: {whole.hexdigest()} instead of {wanted}")

    def _minisign(self, artefact: Path, signature: bytes) -> None:
        place = artefact.with_name(".minisig")
        place.write_bytes(signature)
        key = ["-p", self.argument] if os.path.exists(self.argument) else ["-P", self.argument]
        try:
            done = subprocess.run(
                ["minisign", "-V", "-q", "-m", str(artefact), "-x", str(place), *key],
                capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError:
            raise SourceError(
                "to verify a signature the program minisign is needed: apt-get install minisign"
            ) from None
        finally:
            place.unlink()
        if done.returncode:
            why = " ".join((done.stderr or done.stdout).split()) or f"minisign exited with status {done.returncode}"
            raise Refused(f"{artefact.name} is not signed by the key that was named: {why}")


def _either(beside: Beside, suffixes: tuple[str, ...]) -> bytes:
    """What is there; the first one's complaint where none is."""
    problem: SourceError | None = None
    for suffix in suffixes:
        try:
            return beside("", suffix)
        except SourceError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def checksum_in(text: str, name: str) -> str:
    """Of ``name``, in the form of ``sha256sum``; or the only word there is."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = [words[0] for words in lines if len(words) == 2 and words[1].lstrip("*").rpartition("/")[2] == name]
    if not found and len(lines) == 1 and len(lines[0]) == 1:
        found = lines[0]
    wanted = found[0].lower() if len(found) == 1 else ""
    if len(wanted) not in _ALGORITHMS or set(wanted) - set("0123456789abcdef"):
        raise Refused(f"there is no checksum of {name}")
    return wanted
