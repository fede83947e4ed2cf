"""systemd: a unit, and with ``--socket`` the socket unit that binds for it."""

from __future__ import annotations

import re

from ..system.sockets import parse_bind
from .plan import File, check_name, check_user, check_words, comment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..system.sockets import BindSpec
    from .plan import Plan

DIRECTORY = "/etc/systemd/system"
_UNPRIVILEGED = 1024
_NUMERIC = re.compile(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_KINDS = {
    "tcp": "ListenStream",
    "udp": "ListenDatagram",
    "unix": "ListenStream",
    "unixgram": "ListenDatagram",
    "unixpacket": "ListenSequentialPacket",
}


def files(plan: Plan) -> list[File]:
    sockets = _sockets(plan) if plan.socket else {}
    found = [File(DIRECTORY, f"{plan.name}.service", _service(plan, list(sockets)))]
    return [*found, *(File(DIRECTORY, unit, text) for unit, text in sockets.items())]


def _service(plan: Plan, sockets: list[str]) -> str:
    path = plan.options.path or f"%t/{plan.name}/handoff.sock"
    own = [] if plan.options.path else ["--path", path]
    enabled = " ".join(sockets or [f"{plan.name}.service"])
    lines = [
        comment(
            f"{DIRECTORY}/{plan.name}.service\n"
            f"systemctl daemon-reload && systemctl enable --now {enabled}; systemctl reload {plan.name} upgrades it."
        ).rstrip(),
        "[Unit]",
        f"Description={plan.name}, upgraded without losing a connection",
        f"After={' '.join(['network-online.target', *sockets])}",
        "Wants=network-online.target",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        *([f"Sockets={' '.join(sockets)}"] if sockets else []),
        f"ExecStart={command_line(plan.run(*own), keep=path if own else '')}",
        f"ExecReload={_verb(plan, path, 'upgrade')}",
        *([f"User={plan.user}"] if plan.user else []),
        *([f"Group={plan.group}"] if plan.group else []),
        *(["AmbientCapabilities=CAP_NET_BIND_SERVICE"] if plan.user and not plan.socket and _low(plan) else []),
        *([] if plan.options.path else [f"RuntimeDirectory={plan.name}", "RuntimeDirectoryMode=0700"]),
        # What a killed master's successor finds its generations by.
        *([] if plan.options.path else ["RuntimeDirectoryPreserve=restart"]),
        # The master alone is told, and killed: what a crash leaves serves on until the next start goes on with it, and after
        # any other end it is ended here.
        "KillMode=process",
        f"ExecStopPost={_verb(plan, path, 'stop', '--left-over')}",
        # And where nothing outlives it, the queues do.
        f"FileDescriptorStoreMax={_stored(plan)}",
        f"TimeoutStartSec={plan.upgrade_seconds}",
        f"TimeoutStopSec={'infinity' if plan.stop is None else plan.stop_seconds}",
        "Restart=on-failure",
        "RestartSec=100ms",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _verb(plan: Plan, path: str, *words: str) -> str:
    """Another verb for the service. A path of ours has specifiers in it."""
    return command_line([*plan.program, *words, "--path", path], keep="" if plan.options.path else path)


def _stored(plan: Plan) -> int:
    """For every listener, in both families, a queue for each generation that may be alive."""
    return max(64, 2 * len(plan.options.binds) * (plan.options.max_draining + 2))


def _low(plan: Plan) -> bool:
    binds = [parse_bind(text) for text in plan.options.binds]
    return any(bind.kind in ("tcp", "udp") and 0 < (bind.port or 0) < _UNPRIVILEGED for bind in binds)


def _sockets(plan: Plan) -> dict[str, str]:
    """A unit for each listener: systemd gives all the sockets of one the same name."""
    if not plan.options.binds:
        raise ValueError("--socket needs a --bind: systemd is to bind it")
    found = {}
    for position, text in enumerate(plan.options.binds):
        bind = parse_bind(text)
        name = bind.name or f"listener{position}"
        unit = f"{plan.name}.socket" if len(plan.options.binds) == 1 else f"{plan.name}-{check_name(name)}.socket"
        lines = [
            comment(f"{DIRECTORY}/{unit}").rstrip(),
            "[Unit]",
            f"Description={name} of {plan.name}",
            "",
            "[Socket]",
            f"{_KINDS[bind.kind]}={_address(bind)}",
            f"FileDescriptorName={name}",
            f"Service={plan.name}.service",
            f"Backlog={bind.backlog}",
            *([f"SocketMode={bind.mode:04o}"] if bind.mode is not None else []),
            *([f"SocketUser={check_user(bind.owner)}"] if bind.owner else []),
            *([f"SocketGroup={check_user(bind.group)}"] if bind.group else []),
            *([f"BindToDevice={check_name(bind.interface)}"] if bind.interface else []),
            *(["FreeBind=yes"] if bind.freebind else []),
            *([f"BindIPv6Only={'ipv6-only' if bind.v6only else 'both'}"] if bind.v6only is not None else []),
            *(["NoDelay=yes"] if bind.kind == "tcp" and bind.nodelay else []),
            *(["ReusePort=yes"] if bind.kind in ("tcp", "udp") else []),
            "",
            "[Install]",
            "WantedBy=sockets.target",
        ]
        found[unit] = "\n".join(lines) + "\n"
    return found


def _address(bind: BindSpec) -> str:
    if bind.kind in ("tcp", "udp"):
        if not bind.port:
            raise ValueError(f"{bind} has no port: systemd must be told one")
        if bind.host and not _NUMERIC.fullmatch(bind.host):
            raise ValueError(f"systemd binds no names: say the address of {bind.host!r}")
        host = f"[{bind.host}]" if ":" in bind.host else bind.host
        return f"{host}:{bind.port}" if host else str(bind.port)
    text = bind.path.decode("utf-8", "surrogateescape").replace("\0", "@", 1)
    check_words([text], "systemd")
    if bind.path[:1] not in (b"/", b"\0"):
        raise ValueError(f"{text!r} is relative: systemd must be told an absolute path")
    return text.replace("%", "%%")


def command_line(words: list[str], *, keep: str = "") -> str:
    """As ``ExecStart=`` reads it; in the word ``keep`` specifiers stay what they are."""
    check_words(words, "systemd", lines=True)
    if words[0][:1] in "@-:+!|" or any(letter in words[0] for letter in "$%\n\t\\\"'"):
        raise ValueError(f"systemd can't start a program whose path is {words[0]!r}")
    return " ".join(word if word == keep else _word(word) for word in words)


def _word(word: str) -> str:
    plain = word.replace("%", "%%").replace("$", "$$")
    if word and not set(word) & set(" \t\n\\\"';"):
        return plain
    for letter, written in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        plain = plain.replace(letter, written)
    return f'"{plain}"'
