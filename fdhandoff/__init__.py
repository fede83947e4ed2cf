"""Replace a running network server without losing a connection, whoever started it.

``send(path, listeners)`` in the old process, ``receive(path)`` in the new one; ``Service`` for a whole life; ``Gate`` for the
drain. Names are imported when they are first used, so that ``import fdhandoff`` costs little.
"""

from __future__ import annotations

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
    "daemonize": "background",
    "Daemon": "background",
}
_ERRORS = (
    "HandoffError", "PeerError", "PeerGone", "PeerAborted", "PeerRefused", "PeerUntrusted", "ProtocolError",
    "LocalProtocolError", "VersionMismatch", "DeadlineExceeded", "Unconfirmed", "UpgradeError", "NotReady", "InProgress",
    "SuccessorDied", "RolledBack", "Vetoed", "Aborted", "ListenerError", "ListenerMissing", "ListenerMismatch",
    "EnvironmentInvalid", "PathError", "PathInUse", "GateClosed", "PidfileLocked", "Unsupported", "SystemCallError",
)  # fmt: skip
_HOMES.update(dict.fromkeys(_ERRORS, "errors"))

__all__ = ["__version__", *_HOMES]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .accept import (
        AcceptLoop as AcceptLoop,
        CountedSocket as CountedSocket,
        accept_many as accept_many,
    )
    from .background import (
        Daemon as Daemon,
        daemonize as daemonize,
    )
    from .client import (
        ask as ask,
    )
    from .errors import (
        Aborted as Aborted,
        DeadlineExceeded as DeadlineExceeded,
        EnvironmentInvalid as EnvironmentInvalid,
        GateClosed as GateClosed,
        HandoffError as HandoffError,
        InProgress as InProgress,
        ListenerError as ListenerError,
        ListenerMismatch as ListenerMismatch,
        ListenerMissing as ListenerMissing,
        LocalProtocolError as LocalProtocolError,
        NotReady as NotReady,
        PathError as PathError,
        PathInUse as PathInUse,
        PeerAborted as PeerAborted,
        PeerError as PeerError,
        PeerGone as PeerGone,
        PeerRefused as PeerRefused,
        PeerUntrusted as PeerUntrusted,
        PidfileLocked as PidfileLocked,
        ProtocolError as ProtocolError,
        RolledBack as RolledBack,
        SuccessorDied as SuccessorDied,
        SystemCallError as SystemCallError,
        Unconfirmed as Unconfirmed,
        Unsupported as Unsupported,
        UpgradeError as UpgradeError,
        VersionMismatch as VersionMismatch,
        Vetoed as Vetoed,
    )
    from .gate import (
        CountersView as CountersView,
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
        File as File,
        Listener as Listener,
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
        receive as receive,
    )


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # late: a master, which asks for no name here, need not carry it

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
