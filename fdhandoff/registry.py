"""The handoff paths that this process answers: one endpoint each, whoever uses it.

A path outlives the call that made it: after ``receive`` the new owner answers "starting" there until it offers the service
itself, and a process that ends as the last owner removes it.
"""

from __future__ import annotations

import atexit
import os
from _thread import allocate_lock

from .control import Endpoint, Loop
from .system.paths import bind_control, identity, unlink_control

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

_BACKLOG = 128

_lock = allocate_lock()
_endpoints: dict[str, Endpoint] = {}
_loop: Loop | None = None


def _key(path: str) -> str:
    """One name for one place, also when the directory has several."""
    directory, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(directory), name)


def _running() -> Loop:
    global _loop
    if _loop is None:
        _loop = Loop()
    return _loop


def find(path: str) -> Endpoint | None:
    """The endpoint at ``path``, if this process answers there."""
    with _lock:
        return _endpoints.get(_key(path))


def obtain(path: str, *, mode: int = 0o600, group: int | str | None = None) -> Endpoint:
    """The endpoint at ``path``: ours already, or bound now (``PathInUse`` where a live owner answers, ``PathError``)."""
    with _lock:
        key = _key(path)
        if key not in _endpoints:
            was_running = _loop is not None
            loop = _running()  # first: who has bound must be able to answer
            try:
                sock = bind_control(path, mode, group)
            except BaseException:
                if not was_running:
                    _rest()
                raise
            _endpoints[key] = Endpoint(os.path.abspath(path), sock, identity(path))
            loop.add(_endpoints[key])
        return _endpoints[key]


def answer_by(loop: Loop | None) -> None:
    """From now on ``loop`` answers, which the caller turns, and stops, in place of a thread; ``None``: a thread again."""
    global _loop
    with _lock:
        _loop = loop


def prepare() -> None:
    """Starts the thread that answers, so that nobody waits for it when a takeover is committed."""
    with _lock:
        _running()


def rest() -> None:
    """Ends that thread if there is no path to answer at."""
    with _lock:
        _rest()


def _rest() -> None:
    global _loop
    if not _endpoints and _loop is not None and _loop.own_thread:
        _loop.stop()
        _loop = None


def adopt(path: str, sock: socket.socket, generation: int) -> Endpoint:
    """The endpoint of a control socket that came with a takeover. From here on this process answers at ``path``."""
    with _lock:
        # The kernel tells whoever connects the credentials of the last process that called listen().
        sock.listen(_BACKLOG)
        endpoint = _endpoints[_key(path)] = Endpoint(os.path.abspath(path), sock, identity(path))
        endpoint.generation = generation
        _running().add(endpoint)
        return endpoint


def release(endpoint: Endpoint) -> None:
    """Stops answering, for a commit; the socket stays open, in case the service comes back."""
    endpoint.fall_silent()


def resume(endpoint: Endpoint) -> None:
    """Answers again after ``release``."""
    endpoint.speak_again()
    endpoint.socket.listen(_BACKLOG)
    _running().add(endpoint)


def forget(path: str) -> None:
    """The path is somebody else's now: the socket is closed, the name stays."""
    _drop(path, unlink=False)


def remove(path: str) -> None:
    """The last owner ends: the name goes with it, if it is still this very socket."""
    _drop(path, unlink=True)


def _drop(path: str, *, unlink: bool) -> None:
    with _lock:
        endpoint = _endpoints.pop(_key(path), None)
        if endpoint is None:
            return
        _running().remove(endpoint)
        _rest()  # before the name goes: that takes a descriptor, and there may be none left
        try:
            if unlink:
                unlink_control(endpoint.path, endpoint.socket, endpoint.identity)
        finally:
            endpoint.socket.close()


def _at_exit() -> None:
    for endpoint in list(_endpoints.values()):
        remove(endpoint.path)


def _after_fork_in_child() -> None:
    global _loop, _lock
    _lock = allocate_lock()
    for endpoint in _endpoints.values():  # also those that the thread does not know yet, or not at the moment
        endpoint.socket.close()
    _endpoints.clear()
    if _loop is not None:
        _loop.forget_in_child()
        _loop = None


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
