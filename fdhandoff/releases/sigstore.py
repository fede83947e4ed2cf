"""``--verify sigstore:…``: a signature without a key to keep. Who has signed is told by a certificate of a few minutes, and
that it was valid then by a public log. All of that is the library's work; here is what it is told, and what it says."""

from __future__ import annotations

import hashlib
from importlib import import_module
from importlib.util import find_spec

from . import Refused, SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

#: What tools call the bundle that lies beside an artefact: the newer way, and the one before.
SUFFIXES = (".sigstore.json", ".sigstore")
_PART = 1 << 20


class Identity:
    """Who must have signed: ``IDENTITY ISSUER``, and for an instance of sigstore of one's own the file with its trusted
    root."""

    def __init__(self, text: str) -> None:
        words = text.split()
        if len(words) not in (2, 3):
            raise SourceError(
                f"{text!r} does not tell who must have signed: say 'sigstore:IDENTITY ISSUER', as in "
                "'sigstore:me@example.org https://accounts.example.org'"
            )
        self.identity, self.issuer, self.root = *words[:2], words[2] if len(words) == 3 else ""
        if find_spec("sigstore") is None:  # it is large, and imported where there is something to verify
            raise SourceError(
                "to verify such a signature the package sigstore is needed: pip install 'fdhandoff[sigstore]'"
            )

    def check(self, artefact: Path, bundle: bytes) -> None:
        """``Refused`` unless they have."""
        models: Any = import_module("sigstore.models")
        verify: Any = import_module("sigstore.verify")
        errors: Any = import_module("sigstore.errors")
        try:
            if self.root:
                verifier = verify.Verifier(trusted_root=models.TrustedRoot.from_file(self.root))
            else:
                verifier = verify.Verifier.production()
        except (errors.Error, ValueError) as error:
            which = self.root or "the public instance"
            raise SourceError(f"whom to trust can't be read from {which}: {_in_words(error)}") from None
        policy = verify.policy.Identity(identity=self.identity, issuer=self.issuer)
        try:
            verifier.verify_artifact(_hashed(artefact), models.Bundle.from_json(bundle), policy)
        except (errors.Error, ValueError) as error:  # it also lets out what its parsers say
            raise Refused(
                f"{artefact.name} is not signed by {self.identity} (of {self.issuer}): {_in_words(error)}"
            ) from None


def _hashed(artefact: Path) -> Any:
    """Read in parts: it may be large."""
    hashes: Any = import_module("sigstore.hashes")
    algorithms: Any = import_module("sigstore_models.common.v1")
    with artefact.open("rb") as file:
        whole = hashlib.sha256()
        while part := file.read(_PART):
            whole.update(part)
    return hashes.Hashed(digest=whole.digest(), algorithm=algorithms.HashAlgorithm.SHA2_256)


def _in_words(error: Exception) -> str:
    """One sentence, and not what a parser says of each field."""
    return (str(error).splitlines() or [type(error).__name__])[0]
