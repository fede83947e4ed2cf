"""Replace a running network server without losing a connection, whoever started it.

``send(path, listeners)`` in the old process, ``receive(path)`` in the new one; ``Service`` for a whole life; ``Gate`` for the
drain. Names are imported when they are first used, so that ``import fdhandoff`` costs little.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. The type checker reads the imports below instead.
_HOMES = {
    "send": "offer",
    "Handed": "handoff",
    "receive": "takeover",
    "Takeover": "takeover",
    "Service": "service",
    "Gate": "gate",
    "CountersView": "gate",
    "Listener": "listener",
    "File": "listener",
    "Connection": "listener",
    "Listeners": "listener",
    "Generation": "generation",
    "AcceptLoop": "accept",
    "CountedSocket": "accept",
    "accept_many": "accept",
    "ask": "client",
}
_ERRORS = (
    "HandoffError", "PeerError", "PeerGone", "PeerAborted", "PeerRefused", "PeerUntrusted", "ProtocolError",
    "LocalProtocolError", "VersionMismatch", "DeadlineExceeded", "Unconfirmed", "UpgradeError", "NotReady", "InProgress",
    "SuccessorDied", "RolledBack", "Vetoed", "Aborted", "ListenerError", "ListenerMissing", "ListenerMismatch",
    "EnvironmentInvalid", "PathError", "PathInUse", "GateClosed", "PidfileLocked", "Unsupported", "SystemCallError",
)  # fmt: skip
_HOMES.update(dict.fromkeys(_ERRORS, "errors"))

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .accept import (
        AcceptLoop as AcceptLoop,
    )
    from .accept import (
        CountedSocket as CountedSocket,
    )
    from .accept import (
        accept_many as accept_many,
    )
    from .client import (
        ask as ask,
    )
    from .errors import (
        Aborted as Aborted,
    )
    from .errors import (
        DeadlineExceeded as DeadlineExceeded,
    )
    from .errors import (
        EnvironmentInvalid as EnvironmentInvalid,
    )
    from .errors import (
        GateClosed as GateClosed,
    )
    from .errors import (
        HandoffError as HandoffError,
    )
    from .errors import (
        InProgress as InProgress,
    )
    from .errors import (
        ListenerError as ListenerError,
    )
    from .errors import (
        ListenerMismatch as ListenerMismatch,
    )
    from .errors import (
        ListenerMissing as ListenerMissing,
    )
    from .errors import (
        LocalProtocolError as LocalProtocolError,
    )
    from .errors import (
        NotReady as NotReady,
    )
    from .errors import (
        PathError as PathError,
    )
    from .errors import (
        PathInUse as PathInUse,
    )
    from .errors import (
        PeerAborted as PeerAborted,
    )
    from .errors import (
        PeerError as PeerError,
    )
    from .errors import (
        PeerGone as PeerGone,
    )
    from .errors import (
        PeerRefused as PeerRefused,
    )
    from .errors import (
        PeerUntrusted as PeerUntrusted,
    )
    from .errors import (
        PidfileLocked as PidfileLocked,
    )
    from .errors import (
        ProtocolError as ProtocolError,
    )
    from .errors import (
        RolledBack as RolledBack,
    )
    from .errors import (
        SuccessorDied as SuccessorDied,
    )
    from .errors import (
        SystemCallError as SystemCallError,
    )
    from .errors import (
        Unconfirmed as Unconfirmed,
    )
    from .errors import (
        Unsupported as Unsupported,
    )
    from .errors import (
        UpgradeError as UpgradeError,
    )
    from .errors import (
        VersionMismatch as VersionMismatch,
    )
    from .errors import (
        Vetoed as Vetoed,
    )
    from .gate import (
        CountersView as CountersView,
    )
    from .gate import (
        Gate as Gate,
    )
    from .generation import (
        Generation as Generation,
    )
    from .handoff import (
        Handed as Handed,
    )
    from .listener import (
        Connection as Connection,
    )
    from .listener import (
        File as File,
    )
    from .listener import (
        Listener as Listener,
    )
    from .listener import (
        Listeners as Listeners,
    )
    from .offer import (
        send as send,
    )
    from .service import (
        Service as Service,
    )
    from .takeover import (
        Takeover as Takeover,
    )
    from .takeover import (
        receive as receive,
    )


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
