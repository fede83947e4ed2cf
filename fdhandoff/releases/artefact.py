"""What is done with an artefact from elsewhere, whichever way it came: it is verified, and unpacked or made executable."""

from __future__ import annotations

from . import Settings, tag_of
from .unpacking import is_archive, stem, unpack
from .verification import Verification

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from .verification import Beside

_STEM_MAX = 48
_DIGITS = 12


def verification_of(settings: Settings) -> Verification | None:
    """As the operator chose. ``SourceError`` if that is none."""
    return Verification(settings.verify) if settings.verify else None


def artefact_tag(name: str, digest: str) -> str:
    """What people call a release that is the file ``name``."""
    return tag_of(f"{stem(name)[:_STEM_MAX]}-{digest[:_DIGITS]}")


def finish(artefact: Path, verification: Verification | None, beside: Beside, settings: Settings) -> Path:
    """The release, in the directory of the artefact. ``Refused`` if it is not what it should be; ``beside`` has what it is
    verified by."""
    if verification is not None:
        verification.check(artefact, beside)
    else:
        settings.say(f"{artefact.name} is NOT VERIFIED: whoever can change it on its way runs what they like here")
    if not is_archive(artefact.name):
        artefact.chmod(0o755)
        return artefact
    release = artefact.with_name("release")
    unpack(artefact, release, settings.size_max)
    return release
