"""What a service's life must be under any supervisor: the tests are the same, the supervisor is not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdhandoff.client import ask
from fdhandoff.errors import HandoffError

from ..cli import DEADLINE, environment, verb, wait_for
from ..master import RUDE, Load, kill, quick, request

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A server that is made with this package, and replaced by the master like any other.
SERVICE = """
import os
from fdhandoff import Service
with Service("app", path=None) as service:
    service.listen("http", "127.0.0.1:0")
    service.ready()
    body = f"service {service.generation.number} {os.getpid()}".encode()
    def talk(connection, _):
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    service.serve(talk)
"""

#: A job runner: whoever connects names a job, hears that it was accepted, and leaves; the job goes on in a process of its own.
JOBS = """
import os, signal, socket, subprocess, sys
folder, stop, jobs = os.path.dirname(sys.argv[0]), [], []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
listener = socket.socket(fileno=3)
listener.settimeout(0.05)
while not stop:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        continue
    with connection:
        connection.settimeout(10)
        name = connection.recv(100).decode()
        jobs.append(subprocess.Popen(["sh", "-c", 'sleep 3; echo "$1" > "$0/$1"', folder, name]))
        connection.sendall(b"accepted")
sys.exit(any([job.wait() for job in jobs]))
"""


class Supervisor:
    """A real one, with one service called ``web`` in a directory of its own. ``folder``: for everything."""

    kind = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "web.sock"
        self.env_file = folder / "release.env"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.release("one")
        for name, code in (("rude", RUDE), ("service", SERVICE), ("jobs", JOBS)):
            (folder / f"{name}.py").write_text(code, encoding="utf-8")

    # --- told by each supervisor --------------------------------------------------------------------------

    def command(self) -> list[str]:
        """What starts the supervisor itself, in the foreground."""
        raise NotImplementedError

    def install(self) -> None:
        """Puts what ``unit`` has written into ``folder`` where the supervisor finds it, before it is started."""

    def pid(self) -> int:
        """The process that it believes to be the service; 0 where it believes that there is none."""
        raise NotImplementedError

    def stop(self) -> None:
        """Returns when it says that the service is stopped."""
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def reload(self) -> None:
        """Has the service upgraded, by its own means."""
        raise NotImplementedError

    # --- the same for all ---------------------------------------------------------------------------------

    def begin(self, *options: str, program: str = "rude", wait: bool = True) -> None:
        """With what ``unit`` writes for it, and nothing else."""
        done = verb(
            "unit", self.kind, "--name", "web", "--path", str(self.path), "--env-file", str(self.env_file),
            "--bind", "http=127.0.0.1:0", "--output", str(self.folder / "unit"), *quick(), *options,
            "--", sys.executable, str(self.folder / f"{program}.py"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.install()
        self.start_again()
        if wait:
            self.serves()

    def start_again(self) -> None:
        """The supervisor itself, with the configuration that is there."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(),
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip

    def tell(self, *words: str, code: int | None = 0) -> str:
        """One of its own tools, to its end."""
        done = subprocess.run(words, capture_output=True, text=True, timeout=2 * DEADLINE, env=environment())
        assert code is None or done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def release(self, name: str) -> None:
        self.env_file.write_text(f"RELEASE={name}\n", encoding="utf-8")

    def status(self) -> dict[str, Any]:
        try:
            return ask(self.path, "status", timeout=5.0)
        except (HandoffError, OSError):
            return {}

    def serves(self) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            facts = self.status()
            return facts if facts.get("state") == "serving" and facts["pid"] == self.pid() else None

        return dict(wait_for(look, f"the service; {self.log.read_text()}"))

    def address(self) -> tuple[str, int]:
        host, _, port = self.status()["listeners"][0]["address"].rpartition(":")
        return host, int(port)

    def generations(self) -> dict[int, dict[str, Any]]:
        return {one["number"]: one for one in self.status().get("generations", ()) if one["pids"]}

    def serving_pid(self) -> int:
        facts = self.status()
        return int(next(one["pids"][0] for one in facts["generations"] if one["number"] == facts["generation"]))

    def upgraded(self, number: int) -> None:
        """Returns when generation ``number`` serves alone."""
        wait_for(
            lambda: (alive := self.generations()) and list(alive) == [number] and alive[number]["state"] == "serving",
            f"generation {number}; {self.status()}",
        )

    def family(self) -> list[int]:
        """Every process of the service, by the directory that its command line or its environment names."""
        found = []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                named = any(str(self.folder).encode() in word for word in words)
                if named and (b"run" in words or any(word.endswith(b".py") for word in words)):
                    found.append(pid)
        return found

    def masters(self) -> list[int]:
        """Those in the family that run generations: in it there is one ``run`` alone, but for children that have not executed
        their command yet."""
        found: dict[int, int] = {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(OSError, ValueError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if str(self.path).encode() in b"\0".join(words) and b"run" in words:
                    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    if stat[0] != "Z":
                        found[pid] = int(stat[1])
        return [pid for pid, parent in found.items() if parent not in found]

    def end(self) -> None:
        """The supervisor first, so that it restarts nothing; then whatever is left."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        # Again and again: the supervisor may have been about to start something when we looked.
        wait_for(lambda: not self._killed(self.others()) and not self._killed(self.family()), "the end of all")

    @staticmethod
    def _killed(pids: list[int]) -> list[int]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pids

    def others(self) -> list[int]:
        """Processes of the supervisor's own."""
        return []


class Census:
    """Looks, as often as it can, how many masters there are: never two at once."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.seen: set[int] = set()
        self.most = 0
        self._supervisor = supervisor
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def _count(self) -> None:
        while not self._over.wait(0.01):
            masters = self._supervisor.masters()
            self.seen.update(masters)
            self.most = max(self.most, len(masters))

    def __enter__(self) -> Census:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(DEADLINE)


class Slow:
    """A request that takes its time; ``answer`` is known when it is over."""

    def __init__(self, address: tuple[str, int], seconds: float) -> None:
        self.answer: Any = None
        self._address = address
        self._seconds = seconds
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.answer = request(self._address, f"/sleep{self._seconds}")
        except OSError as error:
            self.answer = error

    def asked(self, supervisor: Supervisor) -> Slow:
        """Returns when the server has it."""
        wait_for(lambda: any(one["active"] for one in supervisor.generations().values()), "the slow request")
        return self

    def over(self) -> Any:
        self._thread.join(DEADLINE)
        return self.answer


class Life:
    """To be inherited, with a fixture ``supervisor``."""

    #: Whether the service's process leads a process group, as the supervisor starts it.
    own_group = True

    def test_twenty_upgrades_fail_no_request_and_the_pid_stays(self, supervisor: Supervisor) -> None:
        supervisor.begin()
        pid = supervisor.pid()
        with Load(supervisor.address(), 3) as load, Census(supervisor) as census:
            for number in range(2, 22):
                supervisor.reload()
                load.heard(number, 5)
                supervisor.upgraded(number)
                assert supervisor.pid() == pid
            load.end()
        assert not load.failures, (len(load.answers), load.failures)
        assert set(load.generations()) == set(range(1, 22))
        assert (census.seen, census.most) == ({pid}, 1)
        print(f"{supervisor.kind}: 20 upgrades, {len(load.answers)} requests, 0 failed, pid {pid} all the time")

    def test_a_bad_release_changes_nothing(self, supervisor: Supervisor) -> None:
        supervisor.begin()
        pid, server = supervisor.pid(), supervisor.serving_pid()
        with Load(supervisor.address(), 2) as load:
            supervisor.env_file.write_text("FAULT=exit3\n")
            supervisor.reload()
            wait_for(lambda: supervisor.status()["counters"]["failed"] == 1, "the end of the bad release")
            load.heard(1)
            load.end()
        assert not load.failures
        assert (supervisor.pid(), supervisor.serving_pid()) == (pid, server)
        assert "exited with status 3" in supervisor.status()["last_upgrade"]["reason"]

    def test_stop_drains_and_leaves_nothing(self, supervisor: Supervisor) -> None:
        supervisor.begin()
        supervisor.reload()
        supervisor.upgraded(2)
        address = supervisor.address()
        slow = Slow(address, 1.5).asked(supervisor)
        supervisor.stop()
        assert slow.over()[1] == 2, slow.answer
        assert supervisor.pid() == 0
        assert supervisor.family() == []
        assert [path.name for path in supervisor.folder.glob("web.sock*")] == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, DEADLINE)
        supervisor.start()
        assert supervisor.serves()["generation"] == 1

    def test_a_killed_master_is_restarted_once_and_nobody_notices(self, supervisor: Supervisor) -> None:
        supervisor.begin()
        supervisor.reload()
        supervisor.upgraded(2)
        pid, server = supervisor.pid(), supervisor.serving_pid()
        with Load(supervisor.address(), 3) as load, Census(supervisor) as census:
            kill(pid)
            wait_for(lambda: supervisor.pid() not in (0, pid), "another master")
            supervisor.serves()
            after = supervisor.pid()
            assert supervisor.serving_pid() == server, "the generation was found again"
            load.heard(2)
            supervisor.reload()
            load.heard(3)
            supervisor.upgraded(3)
            load.end()
        assert not load.failures, (len(load.answers), load.failures)
        assert supervisor.pid() == after
        assert (census.seen - {pid}, census.most) == ({after}, 1)
        supervisor.stop()
        assert supervisor.family() == []

    def test_a_killed_generation_is_replaced_once_and_the_supervisor_does_not_notice(
        self, supervisor: Supervisor
    ) -> None:
        supervisor.begin()
        pid, server = supervisor.pid(), supervisor.serving_pid()
        with Census(supervisor) as census:
            kill(server)
            wait_for(lambda: supervisor.generations().get(1, {}).get("pids", [server]) != [server], "another server")
            assert request(supervisor.address())[1] == 1
            (again,) = supervisor.generations()[1]["pids"]
            supervisor.reload()
            supervisor.upgraded(2)
        assert not Path(f"/proc/{again}").exists()
        assert supervisor.pid() == pid
        assert (census.seen, census.most) == ({pid}, 1)

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2], ids=lambda number: number.name)
    def test_a_signal_to_the_pid_upgrades(self, supervisor: Supervisor, number: signal.Signals) -> None:
        supervisor.begin()
        os.kill(supervisor.pid(), number)
        supervisor.upgraded(2)

    def test_a_signal_to_the_group_means_what_it_means_to_the_pid(self, supervisor: Supervisor) -> None:
        """Generations have groups of their own: each signal reaches them through the master, once."""
        supervisor.begin()
        pid, server = supervisor.pid(), supervisor.serving_pid()
        if not self.own_group:
            assert os.getpgid(pid) != pid
            return
        assert os.getpgid(pid) == pid
        assert os.getpgid(server) == server
        os.killpg(pid, signal.SIGHUP)
        supervisor.upgraded(2)
        slow = Slow(supervisor.address(), 1.0).asked(supervisor)
        os.killpg(pid, signal.SIGTERM)
        assert slow.over()[1] == 2, slow.answer
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end of the drained service")
        supervisor.serves()  # which this supervisor restarts, as nobody told it to stop
        assert supervisor.pid() != pid

    @pytest.mark.parametrize("way", ["to the pid", "to the group", "by the supervisor"])
    def test_accepted_jobs_are_completed_however_the_service_is_stopped(self, supervisor: Supervisor, way: str) -> None:
        supervisor.begin(program="jobs")
        pid = supervisor.pid()
        for name in ("job-1", "job-2"):
            with socket.create_connection(supervisor.address(), DEADLINE) as sock:
                sock.sendall(name.encode())
                assert sock.recv(100) == b"accepted"
        if way == "by the supervisor":
            supervisor.stop()
            assert supervisor.family() == []
        else:
            (os.killpg if way == "to the group" and self.own_group else os.kill)(pid, signal.SIGTERM)
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end of the service")
        assert [(supervisor.folder / name).read_text() for name in ("job-1", "job-2")] == ["job-1\n", "job-2\n"]

    def test_a_service_of_this_package_is_upgraded_like_any_other(self, supervisor: Supervisor) -> None:
        supervisor.begin("--ready", "notify", program="service")
        pid = supervisor.pid()
        with Load(supervisor.address(), 2) as load:
            for number in range(2, 6):
                supervisor.reload()
                load.heard(number, 5)
                supervisor.upgraded(number)
            load.end()
        assert not load.failures, (len(load.answers), load.failures)
        assert supervisor.pid() == pid
        supervisor.stop()
        assert supervisor.family() == []


@contextlib.contextmanager
def ended(supervisor: Supervisor) -> Iterator[Supervisor]:
    """Whatever the test did, nothing of it survives."""
    try:
        yield supervisor
    finally:
        supervisor.end()
