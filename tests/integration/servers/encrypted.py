"""What the programs of these tests need for TLS."""

from __future__ import annotations

import ssl
from collections.abc import Sequence


def context_of(files: Sequence[str]) -> ssl.SSLContext | None:
    """With a certificate and its key; ``None`` without."""
    if not files:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    return context
