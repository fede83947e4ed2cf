from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.errors import PathError, SystemCallError
from fdhandoff.system import fds, paths, sockets
from fdhandoff.system.sockets import BindSpec, bind, parse_bind

from . import as_nobody, ipv6, linux, python, root

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fdh", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


class Bound:
    """What ``bind`` made, closed at the end."""

    def __init__(self, text: str) -> None:
        self.sockets = bind(parse_bind(text))
        self.texts = []
        for sock in self.sockets:
            found = fds.describe(sock.fileno())
            assert found is not None
            assert not sock.get_inheritable()
            assert sock.getblocking()
            self.texts.append(str(found))

    def __enter__(self) -> Bound:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.sockets:
            sock.close()

    @property
    def port(self) -> int:
        (port,) = {sock.getsockname()[1] for sock in self.sockets}
        return int(port)


# --- reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "fields"), [
    ("127.0.0.1:80", {"kind": "tcp", "host": "127.0.0.1", "port": 80, "name": ""}),
    ("localhost:0", {"kind": "tcp", "host": "localhost", "port": 0}),
    (":8080", {"kind": "tcp", "host": "", "port": 8080}),
    ("tcp::8080", {"kind": "tcp", "host": "", "port": 8080}),
    ("tcp:example.org:80", {"kind": "tcp", "host": "example.org", "port": 80}),
    ("[::1]:443", {"kind": "tcp", "host": "::1", "port": 443}),
    ("udp:[fe80::1%lo]:53", {"kind": "udp", "host": "fe80::1%lo", "port": 53}),
    ("udp::53", {"kind": "udp", "host": "", "port": 53}),
    ("web=:80", {"kind": "tcp", "name": "web", "port": 80}),
    ("my web-1=unix:/run/x", {"kind": "unix", "name": "my web-1", "path": b"/run/x"}),
    ("/run/x", {"kind": "unix", "path": b"/run/x", "mode": None, "group": ""}),
    ("unix:relative", {"kind": "unix", "path": b"relative"}),
    ("unix:/with=sign", {"kind": "unix", "path": b"/with=sign", "name": ""}),
    ("unixgram:/run/x?mode=0660&group=www", {"kind": "unixgram", "mode": 0o660, "group": "www"}),
    ("/run/x?owner=www-data&group=7", {"owner": "www-data", "group": "7"}),
    ("unixpacket:@name", {"kind": "unixpacket", "path": b"\0name"}),
    ("@name", {"kind": "unix", "path": b"\0name"}),
    ("a=@name", {"kind": "unix", "path": b"\0name", "name": "a"}),
    (":80", {"backlog": 2048, "v6only": None, "reuseport": False, "nodelay": True, "interface": "", "freebind": False}),
    (":80?backlog=7&v6only=1&reuseport&nodelay=0&interface=lo&freebind=1",
     {"backlog": 7, "v6only": True, "reuseport": True, "nodelay": False, "interface": "lo", "freebind": True}),
])  # fmt: skip
def test_an_address_is_read(text: str, fields: dict[str, Any]) -> None:
    spec = parse_bind(text)
    assert {name: getattr(spec, name) for name in fields} == fields


@pytest.mark.parametrize(("text", "shown"), [
    ("a=127.0.0.1:80?backlog=1", "127.0.0.1:80"), ("[::1]:80", "[::1]:80"), (":80", ":80"), ("udp::53", "udp::53"),
    ("/run/x", "unix:/run/x"), ("unixgram:@a", "unixgram:@a"),
])  # fmt: skip
def test_an_address_is_shown_as_it_can_be_read_again(text: str, shown: str) -> None:
    assert str(parse_bind(text)) == shown
    assert str(parse_bind(shown)) == shown
    assert "BindSpec(" in repr(parse_bind(text))


@pytest.mark.parametrize(("text", "message"), [
    ("8080", "has no port and is no path: say HOST:PORT, :PORT, unix:PATH or @NAME"),
    ("", "has no port and is no path"),
    ("localhost:", "has the port ''"),
    ("localhost:http", "has the port 'http': say a number from 0 to 65535"),
    ("localhost:65536", "has the port '65536'"),
    ("localhost:-1", "has the port '-1'"),
    ("::1:80", "has an IPv6 address without brackets: say [::1]:80"),
    ("[127.0.0.1]:80", "has '127.0.0.1' in brackets, which is no IPv6 address"),
    ("udp:80", "has no port: say HOST:PORT or :PORT"),
    ("unix:", "names no Unix socket: say unix:PATH or unix:@NAME"),
    ("unixgram:@", "names no Unix socket"),
    ("=:80", "begins with '='"),
    ("é=:80", "printable ASCII"),
    (":80?what=1", "has the option 'what': there are backlog, "),
    (":80?mode=0600", "has the option 'mode', which means nothing for that address"),
    ("@a?mode=0600", "has the option 'mode', which means nothing"),
    ("udp::80?backlog=1", "has the option 'backlog', which means nothing"),
    ("/x?v6only=1", "has the option 'v6only', which means nothing"),
    (":80?backlog=many", "has backlog='many': say a number of connections"),
    (":80?v6only=yes", "has v6only='yes': say 0 or 1"),
    ("/x?mode=rw", "'rw' is no mode: say an octal number such as 0660"),
    ("/x?mode=7777", "'7777' is no mode"),
    ("/x?group=", "has an empty group"),
    ("/x?owner=", "has an empty owner"),
    ("@a?owner=root", "has the option 'owner', which means nothing"),
    (":80?owner=root", "has the option 'owner', which means nothing"),
])  # fmt: skip
def test_what_cant_be_bound_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_bind(text)
    assert message in str(caught.value)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'sctp' is no kind of socket"):
        BindSpec("sctp")


# --- binding --------------------------------------------------------------------------------------------------


def test_a_v4_address_listens() -> None:
    with Bound("127.0.0.1:0") as bound:
        assert bound.texts == [f"TCP listener 127.0.0.1:{bound.port}"]
        (sock,) = bound.sockets
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with socket.create_connection(sock.getsockname()):
            sock.accept()[0].close()


@ipv6
def test_a_bare_port_is_dual_stack() -> None:
    with Bound(":0") as bound:
        assert bound.texts == [f"TCP listener [::]:{bound.port}"]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, bound.port)):
                bound.sockets[0].accept()[0].close()


@ipv6
def test_v6_alone_leaves_v4_to_others() -> None:
    with Bound("[::]:0") as six, Bound(f"0.0.0.0:{six.port}") as four:
        assert six.texts == [f"TCP listener [::]:{six.port}"]
        assert four.texts == [f"TCP listener 0.0.0.0:{six.port}"]
    with Bound("[::]:0?v6only=0") as both, socket.create_connection(("127.0.0.1", both.port)):
        both.sockets[0].accept()[0].close()
    with Bound(":0?v6only=1") as six, Bound(f"0.0.0.0:{six.port}"):
        pass


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> str:
    """A host with a v4 and a v6 address: what ``localhost`` is, where ``/etc/hosts`` says so."""

    def resolve(host: bytes, port: int, *rest: int) -> list[Any]:
        addresses = ("127.0.0.1", "::1", "127.0.0.1") if host == b"both.example" else (host,)
        return [found for address in addresses for found in real(address, port, *rest)]

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return "both.example"


@ipv6
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_host_is_bound_at_every_address_on_one_port(kind: str, both: str) -> None:
    with Bound(f"{kind}:{both}:0") as bound:
        assert [sock.getsockname()[0] for sock in bound.sockets] == ["127.0.0.1", "::1"]
        assert bound.port > 0
        if kind == "tcp":
            for sock in bound.sockets:
                with socket.socket(sock.family) as client:
                    client.connect(sock.getsockname())
                    sock.accept()[0].close()


@ipv6
def test_all_or_nothing(both: str) -> None:
    with Bound("[::1]:0") as six:
        before = len(os.listdir("/dev/fd"))
        with pytest.raises(SystemCallError, match=rf"\[::1\]:{six.port} is taken by pid {os.getpid()} "):
            bind(parse_bind(f"{both}:{six.port}"))
        assert len(os.listdir("/dev/fd")) == before
        with Bound(f"127.0.0.1:{six.port}"):  # free again
            pass


def test_an_address_that_this_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``::1`` is where there is no IPv6, though ``localhost`` resolves to it."""
    answers = {
        "some.example": [
            (socket.AF_INET6, 0, 0, "", ("2001:db8::1", 0, 0, 0)),
            (socket.AF_INET, 0, 0, "", ("127.0.0.1", 0)),
        ],
        "none.example": [(socket.AF_INET6, 0, 0, "", ("2001:db8::1", 0, 0, 0))],
    }
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_: answers[host.decode()])
    with Bound("some.example:0") as bound:
        assert bound.texts == [f"TCP listener 127.0.0.1:{bound.port}"]
    with pytest.raises(SystemCallError, match=r"\[2001:db8::1\]:0 is no address of this machine"):
        bind(parse_bind("none.example:0"))


def test_a_udp_port_is_not_shared_by_accident() -> None:
    # TCP's ports are others; clients have many of them, so that one comes first.
    with Bound("127.0.0.1:0") as tcp, Bound(f"udp:127.0.0.1:{tcp.port}") as bound:
        assert bound.texts == [f"UDP socket 127.0.0.1:{bound.port}"]
        with pytest.raises(SystemCallError, match=rf"udp:127.0.0.1:{bound.port} is taken") as caught:
            bind(parse_bind(f"udp:127.0.0.1:{bound.port}"))
        assert caught.value.errno == errno.EADDRINUSE


def test_a_port_is_shared_on_purpose() -> None:
    with Bound("127.0.0.1:0?reuseport=1") as one, Bound(f"127.0.0.1:{one.port}?reuseport=1"):
        pass


def test_options_reach_the_socket() -> None:
    with Bound("127.0.0.1:0?nodelay=0&backlog=5") as bound:
        assert not bound.sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if sys.platform == "linux":
            assert fds.listener_queue(bound.sockets[0].fileno()) == (0, 5)


@linux
def test_the_default_backlog_is_what_the_kernel_allows() -> None:
    allowed = int(Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii"))
    with Bound("127.0.0.1:0") as bound:
        assert fds.listener_queue(bound.sockets[0].fileno()) == (0, min(allowed, sockets.BACKLOG))


@linux
def test_linux_options_reach_the_socket() -> None:
    with Bound("127.0.0.1:0?interface=lo") as bound:
        name = bound.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        assert name.rstrip(b"\0") == b"lo"
    with Bound("192.0.2.1:0?freebind=1") as bound:
        assert bound.texts == [f"TCP listener 192.0.2.1:{bound.port}"]
    with Bound("udp:[2001:db8::1]:0?freebind=1") as bound:
        assert bound.texts == [f"UDP socket [2001:db8::1]:{bound.port}"]
    with pytest.raises(SystemCallError, match=r"setsockopt\(SO_BINDTODEVICE\) failed: No such device"):
        bind(parse_bind("127.0.0.1:0?interface=nowhere0"))


def test_an_address_of_another_machine_says_so() -> None:
    with pytest.raises(SystemCallError, match=r"192.0.2.1:0 is no address of this machine") as caught:
        bind(parse_bind("192.0.2.1:0"))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_host_without_an_address_says_so() -> None:
    with pytest.raises(SystemCallError, match=r"the host 'no-such-host.invalid' has no address"):
        bind(parse_bind("no-such-host.invalid:80"))


@linux
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", pytest.param("[::]", marks=ipv6)])
def test_the_holder_of_a_taken_port_is_named(address: str) -> None:
    code = (
        "import sys\nfrom {package}.system.sockets import bind, parse_bind\n"
        "s = bind(parse_bind(sys.argv[1])); print(s[0].getsockname()[1], flush=True); input()"
    )
    with python(code, f"{address}:0?v6only=0" if ":" in address else f"{address}:0") as holder:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        with pytest.raises(SystemCallError) as caught:
            bind(parse_bind(f"127.0.0.1:{port}"))
        assert caught.value.errno == errno.EADDRINUSE
        assert str(caught.value).startswith(f"127.0.0.1:{port} is taken by pid {holder.pid} (python")
        assert str(caught.value).endswith("stop that or choose another port: bind failed: Address already in use")
        holder.communicate("\n", timeout=20)


@root
@linux
def test_a_holder_that_we_may_not_see_is_not_named() -> None:
    with Bound("127.0.0.1:0") as bound:
        port = bound.port

        def attempt() -> object:
            bound.__exit__()  # the fork's copies, which it could see
            return bind(parse_bind(f"127.0.0.1:{port}"))

        said = as_nobody(attempt)
        assert f"127.0.0.1:{bound.port} is taken by a process that we may not see" in said


@root
@linux
def test_a_privileged_port_says_what_to_do() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text(encoding="ascii"))
    if first <= 1:
        pytest.skip("this system has no privileged ports")
    said = as_nobody(lambda: bind(parse_bind("127.0.0.1:1")))
    assert said.startswith(
        "SystemCallError: 127.0.0.1:1 is a privileged port: run as root, give the program CAP_NET_BIND"
    )
    assert f"choose a port from {first} on: bind failed: Permission denied" in said


# --- Unix -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "word"), [
    ("unix", "Unix stream listener"), ("unixgram", "Unix datagram socket"), ("unixpacket", "Unix seqpacket listener"),
])  # fmt: skip
def test_a_unix_path_is_bound_with_its_mode(kind: str, word: str, place: Path) -> None:
    with Bound(f"{kind}:{place}/s?mode=0660") as bound:
        assert bound.texts == [f"{word} unix:{place}/s"]
        assert stat.S_IMODE((place / "s").stat().st_mode) == 0o660
        with pytest.raises(SystemCallError, match=f"{place}/s is in use by") as caught:
            bind(parse_bind(f"{kind}:{place}/s"))
        assert caught.value.errno == errno.EADDRINUSE
    assert os.listdir(place) == ["s"]
    with Bound(f"{kind}:{place}/s") as bound:  # the dead one is replaced
        assert paths.is_bound_at(place / "s", bound.sockets[0], paths.identity(place / "s"))


def test_a_unix_path_has_the_umasks_mode_when_none_is_asked_for(place: Path) -> None:
    before = os.umask(0o027)
    try:
        with Bound(f"{place}/s"):
            assert stat.S_IMODE((place / "s").stat().st_mode) == 0o750
    finally:
        os.umask(before)


def test_a_unix_path_that_cant_be_used_says_so(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(PathError, match="is a regular file, not a socket, and was not touched"):
        bind(parse_bind(f"{place}/file"))
    with pytest.raises(PathError, match=f"there is no directory {place}/none"):
        bind(parse_bind(f"{place}/none/s"))
    with pytest.raises(PathError, match="bytes, but a Unix socket's path holds"):
        bind(parse_bind(f"{place}/{'x' * 120}"))


@linux
@pytest.mark.parametrize("kind", ["unix", "unixgram", "unixpacket"])
def test_an_abstract_name_is_bound_and_its_holder_named(kind: str) -> None:
    name = f"@fdhandoff test {os.getpid()}"
    with Bound(f"{kind}:{name}") as bound:
        assert bound.texts[0].endswith(f"unix:{name}")
        with pytest.raises(SystemCallError, match=f"{kind}:{name} is taken by pid {os.getpid()} ") as caught:
            bind(parse_bind(f"{kind}:{name}"))
        assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(SystemCallError, match="an abstract name holds 107 bytes"):
        bind(parse_bind(f"@{'x' * 108}"))
    with Bound(f"{kind}:@{'x' * 107}"):
        pass


def test_failures_leave_nothing_open(place: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with Bound("127.0.0.1:0") as bound:
        for text in (f"127.0.0.1:{bound.port}", "192.0.2.1:0", "no-such-host.invalid:1", f"{place}/none/s"):
            with pytest.raises((SystemCallError, PathError)):
                bind(parse_bind(text))
    assert len(os.listdir("/dev/fd")) == before
    assert os.listdir(place) == []
