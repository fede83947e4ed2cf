"""Every way in which a handoff can fail, as one tree of exceptions.

The base class carries the answer to the operator's first question, *who serves now?*, as ``.serving``:
``"old"`` (the generation that owned the service before the attempt), ``"new"`` (the one that took it), ``"nobody"``,
or ``"unknown"``. The message is one sentence that says what happened and, where there is one, what to do.
``docs/reference/errors.md`` lists error, what still serves, what to do.
"""

from __future__ import annotations

import errno as numbers
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OLD = "old"
NEW = "new"
NOBODY = "nobody"
UNKNOWN = "unknown"


class HandoffError(Exception):
    """Base of all errors of this package. ``serving`` names the generation that serves now."""

    def __init__(self, message: str, *, serving: str = UNKNOWN) -> None:
        super().__init__(message)
        self.serving = serving

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own way calls the class with the message alone, and most of these want more.
        return _again, (type(self), self.args, vars(self))


def _again(cls: type[HandoffError], args: tuple[object, ...], state: dict[str, object]) -> HandoffError:
    """An error that was copied, or came from another process."""
    error = cls.__new__(cls)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


# --- what the peer did --------------------------------------------------------------------------------------


class PeerError(HandoffError):
    """The other side of the conversation made it fail."""


class PeerGone(PeerError):
    """The peer died or hung up before the handoff was complete."""


class PeerAborted(PeerError):
    """The peer gave the handoff up and said so."""


class PeerRefused(PeerError):
    """The owner refused to begin. ``code`` is the refusal's word in the protocol, such as ``starting``; ``answer`` what an
    operator's verb was answered besides."""

    def __init__(self, message: str, *, code: str, serving: str = OLD) -> None:
        super().__init__(message, serving=serving)
        self.code = code
        self.answer: dict[str, Any] = {}


class PeerUntrusted(PeerError):
    """The kernel says that the peer is not an allowed user."""


class ProtocolError(PeerError):
    """The peer sent something that the protocol does not allow at this point, or that is not the protocol at all."""


class LocalProtocolError(HandoffError):
    """This side tried a step that the protocol does not allow at this point."""


class VersionMismatch(PeerRefused):
    """No protocol version is spoken by both sides; the message names both sides' versions."""

    def __init__(self, message: str, *, serving: str = OLD) -> None:
        super().__init__(message, code="version", serving=serving)


# --- what a deadline cut ------------------------------------------------------------------------------------


class DeadlineExceeded(HandoffError, TimeoutError):
    """Something did not happen in its time; also a ``TimeoutError``."""


class Unconfirmed(DeadlineExceeded):
    """The taker was given the service and lives, but has not said that it serves. It owns the service: this side must not
    accept again unless it is proved dead."""


# --- what an upgrade could not do -----------------------------------------------------------------------------


class UpgradeError(HandoffError):
    """An upgrade did not take place."""


class NotReady(UpgradeError, DeadlineExceeded):
    """The new generation did not become ready in its time."""


class InProgress(UpgradeError, PeerRefused):
    """Another handoff is under way; the message says by whom."""

    def __init__(self, message: str, *, serving: str = OLD) -> None:
        PeerRefused.__init__(self, message, code="in-progress", serving=serving)


class SuccessorDied(UpgradeError):
    """The new generation ended before it could serve. ``status`` and ``signal`` say how, where that is known."""

    def __init__(
        self, message: str, *, status: int | None = None, signal: int | None = None, serving: str = OLD
    ) -> None:
        super().__init__(message, serving=serving)
        self.status = status
        self.signal = signal


class RolledBack(UpgradeError):
    """The new generation owned the service and lost it again within probation; the old one serves."""


class Vetoed(UpgradeError):
    """A hook said no. The hook's own words are in the message."""


class Aborted(UpgradeError):
    """This side gave the handoff up (``abort()``, a stop request, leaving the ``with`` block without ``ready()``)."""


# --- what is wrong with a listener ----------------------------------------------------------------------------


class ListenerError(HandoffError):
    """A listener or another descriptor is not what it should be."""


class ListenerMissing(ListenerError):
    """A listener that was asked for by name or address is not among those that came."""


class ListenerMismatch(ListenerError):
    """A descriptor is not what its entry says. ``expected`` and ``got`` are the two sides of the comparison."""

    def __init__(self, message: str, *, expected: object, got: object, serving: str = OLD) -> None:
        super().__init__(message, serving=serving)
        self.expected = expected
        self.got = got


class EnvironmentInvalid(ListenerError):
    """``LISTEN_FDS`` or one of its relatives makes no sense; the message quotes the variable."""


# --- where the handoff path is wrong --------------------------------------------------------------------------


class PathError(HandoffError):
    """The handoff path can't be used; the message says why. ``path`` is the one meant."""

    def __init__(self, message: str, *, path: str, serving: str = UNKNOWN) -> None:
        super().__init__(message, serving=serving)
        self.path = path


class PathInUse(PathError):
    """A live owner answers at the path already."""


# --- the rest -------------------------------------------------------------------------------------------------


class GateClosed(HandoffError):
    """The gate is closed: nothing enters any more."""


class PidfileLocked(HandoffError):
    """Another live process holds the pidfile. ``pid`` is the number in it, or ``None``."""

    def __init__(self, message: str, *, pid: int | None) -> None:
        super().__init__(message, serving=OLD)
        self.pid = pid


class Unsupported(HandoffError):
    """This system lacks what was asked for; the message says what, and since when it exists."""


class SystemCallError(HandoffError, OSError):
    """A system call failed. ``call`` is its name; ``errno`` and ``strerror`` as in any ``OSError``."""

    def __init__(self, call: str, errno: int, *, doing: str = "", serving: str = UNKNOWN) -> None:
        what = f"{doing}: " if doing else ""
        HandoffError.__init__(self, f"{what}{call} failed: {_reason(errno, os.strerror(errno))}", serving=serving)
        self.call = call
        self.errno = errno
        self.strerror = os.strerror(errno)

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), self.args, {**vars(self), "errno": self.errno, "strerror": self.strerror})

    def __str__(self) -> str:
        return str(self.args[0])


def sentence(error: BaseException) -> str:
    """What ``error`` says, for a person: of a plain ``OSError`` the file and the reason, not its number."""
    if not isinstance(error, OSError) or isinstance(error, HandoffError) or error.errno is None:
        return str(error)
    what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return what + _reason(error.errno, error.strerror or os.strerror(error.errno))


def _reason(number: int, reason: str) -> str:
    if number == numbers.EMFILE:
        return f"{reason}: raise the open-files limit of this process (ulimit -n, LimitNOFILE=)"
    return reason
