"""Each command of the page does what the page says; so do its drop-ins."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ...cli import wait_for
from . import Bed, Load, Question, install
from .test_service import WEB, ends, start, status

if TYPE_CHECKING:
    from .conftest import Boot


def generations(bed: Bed) -> dict[int, dict[str, Any]]:
    return {one["number"]: one for one in json.loads(status(bed))["generations"] if one["pids"]}


def kill(bed: Bed, signal: str, whom: str = "main", unit: str = "web") -> None:
    bed.systemctl("kill", f"--kill-whom={whom}", "-s", signal, unit)


@pytest.mark.parametrize("signal", ["HUP", "USR2"])
def test_these_signals_to_the_main_process_upgrade(bed: Bed, signal: str) -> None:
    pid = start(bed)
    with Load(bed, WEB) as load:
        kill(bed, signal)
        load.heard(2)
    assert not load.failures
    assert bed.main_pid("web") == pid
    ends(bed)


def test_term_to_the_main_process_drains_and_the_service_stays_ended(bed: Bed) -> None:
    start(bed)
    slow = Question(bed, WEB, "/sleep1")
    wait_for(lambda: generations(bed)[1]["active"] == 1, "the request")
    kill(bed, "TERM")
    wait_for(lambda: bed.show("web", "ActiveState") == "deactivating", "STOPPING=1 to be heard")
    assert bed.show("web", "StatusText").startswith("Draining: generation 1")
    assert slow.answer()[1] == 1
    wait_for(lambda: bed.show("web", "ActiveState") == "inactive", "the end")
    assert (bed.show("web", "Result"), bed.show("web", "NRestarts")) == ("success", "0")
    assert bed.processes("web") == []


def test_a_second_term_after_a_second_hurries(bed: Bed) -> None:
    start(bed)
    slow = Question(bed, WEB, "/sleep60")
    wait_for(lambda: generations(bed)[1]["active"] == 1, "the request")
    kill(bed, "TERM")
    wait_for(lambda: hurried(bed), "the end")
    with pytest.raises(OSError, match=r"closed|reset"):
        slow.answer()
    assert bed.processes("web") == []


def hurried(bed: Bed) -> bool:
    """TERM again, unless it has ended."""
    bed.systemctl("kill", "--kill-whom=main", "-s", "TERM", "web", check=False)
    return bed.show("web", "ActiveState") == "inactive"


def test_one_worker_more_and_one_less(bed: Bed) -> None:
    start(bed)
    kill(bed, "TTIN")
    wait_for(lambda: len(generations(bed)[1]["pids"]) == 2, "two workers")
    kill(bed, "TTOU")
    wait_for(lambda: len(generations(bed)[1]["pids"]) == 1, "one worker")
    ends(bed)


def test_usr1_reaches_every_generation(bed: Bed) -> None:
    start(bed)
    server = "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: open('/srv/usr1', 'w').close())\n"
    bed.shared.chmod(0o777)
    from ...master import RUDE

    bed.program("web/current/bin/server", server + RUDE)
    bed.systemctl("reload", "web")
    kill(bed, "USR1")
    wait_for((bed.shared / "usr1").exists, "the signal in the server")
    ends(bed)


def test_term_to_all_ends_every_server_at_once(bed: Bed) -> None:
    start(bed)
    slow = Question(bed, WEB, "/sleep60")
    wait_for(lambda: generations(bed)[1]["active"] == 1, "the request")
    kill(bed, "TERM", "all")
    with pytest.raises(OSError, match=r"closed|reset"):
        slow.answer()
    wait_for(lambda: bed.show("web", "ActiveState") == "inactive", "the end")
    assert bed.processes("web") == []
    assert bed.show("web", "NRestarts") == "0"


def test_a_master_that_is_killed_while_it_stops_leaves_nothing(bed: Bed) -> None:
    """Then there is no next start for which ExecStopPost would leave the generation."""
    start(bed)
    slow = Question(bed, WEB, "/sleep60")
    wait_for(lambda: generations(bed)[1]["active"] == 1, "the request")
    stop = bed.start("systemctl", "stop", "web")
    wait_for(lambda: bed.show("web", "StatusText").startswith("Draining"), "the drain")
    kill(bed, "KILL")
    stop.communicate()
    with pytest.raises(OSError, match=r"closed|reset"):
        slow.answer()
    assert bed.show("web", "ActiveState") == "failed"
    assert bed.inside("pgrep", "-f", "/srv/.*/bin/", check=False).stdout == ""
    assert "generation 1 of a master that died is ended" in bed.log("web")


def test_a_drain_longer_than_systemds_patience_is_waited_for(bed: Bed) -> None:
    start(bed)
    bed.unit("web.service.d/short.conf", "[Service]\nTimeoutStopSec=3\n")
    bed.reload()
    slow = Question(bed, WEB, "/sleep6")
    wait_for(lambda: generations(bed)[1]["active"] == 1, "the request")
    ends(bed)
    assert slow.answer()[1] == 1


# --- the drop-ins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [254, 257])
def test_a_reload_by_signal_waits_for_the_outcome(boot: Boot, version: int) -> None:
    bed = boot(version)
    pid = start(bed, "web.service.d/reload.conf")
    with Load(bed, WEB) as load:
        for number in (2, 3):
            bed.systemctl("reload", "web")
            assert bed.show("web", "StatusText").startswith(f"Generation {number} serves")
            load.heard(number)
        bed.program("web/current/bin/server", "raise SystemExit(3)")
        bed.systemctl("reload", "web")
        assert bed.show("web", "StatusText").startswith("Generation 3 serves; the upgrade to 4 failed: ")
        assert bed.show("web", "ActiveState") == "active"
    assert not load.failures
    assert bed.main_pid("web") == pid
    ends(bed)


@pytest.mark.parametrize("version", [252, pytest.param(257, marks=pytest.mark.soak)])
def test_a_master_that_hangs_is_killed_by_the_watchdog_and_the_next_one_goes_on(boot: Boot, version: int) -> None:
    bed = boot(version)
    pid = start(bed, "web.service.d/watchdog.conf")
    bed.unit("web.service.d/zz-short.conf", "[Service]\nWatchdogSec=1s\n")
    bed.reload()
    bed.systemctl("restart", "web")
    pid = bed.main_pid("web")
    server = bed.request(WEB)[2]
    with Load(bed, WEB) as load:
        bed.inside("kill", "-STOP", str(pid))
        wait_for(lambda: bed.main_pid("web") not in (0, pid), "another master")
        wait_for(lambda: bed.show("web", "ActiveState") == "active", "it to be ready")
        assert bed.request(WEB)[2] == server
        load.heard(1)
    assert not load.failures
    assert bed.show("web", "NRestarts") == "1"
    ends(bed)


def test_together_means_that_nothing_outlives_the_master(bed: Bed) -> None:
    pid = start(bed, "web.service.d/together.conf")
    server = bed.request(WEB)[2]
    kill(bed, "KILL")
    wait_for(lambda: bed.main_pid("web") not in (0, pid), "another master")
    wait_for(lambda: bed.show("web", "ActiveState") == "active", "it to be ready")
    assert bed.request(WEB)[2] != server
    wait_for(lambda: len(bed.programs("web")) == 2, "one master and one server")
    with Load(bed, WEB) as load:
        bed.systemctl("reload", "web")
        load.heard(2)
    assert not load.failures
    ends(bed)


# --- a user's own manager -------------------------------------------------------------------------------------


def test_a_user_manager_runs_it_as_well(bed: Bed) -> None:
    bed.program("web/current/bin/server")
    bed.unit(
        "user-manager.service",
        "[Service]\nUser=nobody\nType=notify\nDelegate=yes\nKillMode=mixed\nRuntimeDirectory=nobody\n"
        "Environment=XDG_RUNTIME_DIR=/run/nobody HOME=/run/nobody\nExecStart=/lib/systemd/systemd --user\n",
    )
    install(bed, "web.service")
    for name in ("web.service", "web.service.d/quick.conf"):
        text = (bed.shared.parent / "units" / name).read_text(encoding="utf-8")
        bed.user_unit(name, text.replace("User=www-data\n", ""))
    bed.systemctl("start", "user-manager")

    def user(*words: str) -> str:
        command = ["setpriv", "--reuid=nobody", "--clear-groups", "env", "XDG_RUNTIME_DIR=/run/nobody"]
        return bed.inside(*command, "systemctl", "--user", *words).stdout.strip()

    user("start", "web")
    pid = user("show", "--value", "--property=MainPID", "web")
    with Load(bed, WEB) as load:
        for number in (2, 3):
            user("reload", "web")
            load.heard(number)
            assert user("show", "--value", "--property=StatusText", "web").startswith(f"Generation {number} serves")
    assert not load.failures
    assert user("show", "--value", "--property=MainPID", "web") == pid
    user("stop", "web")
    assert bed.inside("pgrep", "-f", "/srv/.*/bin/", check=False).stdout == ""


# --- when something is wrong ----------------------------------------------------------------------------------


def broken(bed: Bed, text: str) -> None:
    """The unit of the page with this in a drop-in."""
    bed.program("web/current/bin/server")
    install(bed, "web.service")
    bed.unit("web.service.d/zz-broken.conf", f"[Service]\n{text}")
    bed.reload()


def test_a_simple_unit_serves_and_says_what_it_misses(bed: Bed) -> None:
    broken(bed, "Type=simple\nNotifyAccess=none\nFileDescriptorStoreMax=0\n")
    bed.systemctl("start", "web")
    wait_for(lambda: "generation 1 serves" in bed.log("web"), "the service")
    assert bed.request(WEB)[1] == 1
    assert "systemd can't hear when this service is ready, as NOTIFY_SOCKET is not set" in bed.log("web")
    ends(bed)


def test_notify_access_none_is_taken_for_main_with_type_notify(bed: Bed) -> None:
    broken(bed, "NotifyAccess=none\n")
    bed.systemctl("start", "web")
    assert bed.show("web", "StatusText").startswith("Generation 1 serves")
    ends(bed)


def test_a_wrapper_that_does_not_exec_is_named_in_the_log(bed: Bed) -> None:
    install(bed, "web.service")
    command = bed.inside("systemctl", "cat", "web").stdout.rpartition("ExecStart=")[2].splitlines()[0]
    broken(bed, f"TimeoutStartSec=3\nRestart=no\nExecStart=\nExecStart=/bin/sh -c '{command}; exit'\n")
    assert bed.inside("systemctl", "start", "web", check=False).returncode != 0
    log = bed.log("web")
    assert "and listens to it alone" in log
    assert "let the wrapper exec this program" in log
    # systemd forgot it with the wrapper; the unit's ExecStopPost did not.
    assert "serves on, of whose master the unit has lost sight" in log
    assert bed.inside("pgrep", "-f", "/srv/.*/bin/", check=False).stdout == ""


@pytest.mark.parametrize("wrapper", ["env -u NOTIFY_SOCKET", "env -i PATH=/usr/local/bin:/usr/bin:/bin"])
def test_a_wrapper_that_withholds_the_notify_socket_is_explained_and_nothing_stays(bed: Bed, wrapper: str) -> None:
    install(bed, "web.service")
    command = bed.inside("systemctl", "cat", "web").stdout.rpartition("ExecStart=")[2].splitlines()[0]
    broken(bed, f"TimeoutStartSec=3\nRestart=no\nExecStart=\nExecStart=/usr/bin/{wrapper} {command}\n")
    assert bed.inside("systemctl", "start", "web", check=False).returncode != 0
    assert bed.show("web", "Result") == "timeout"
    log = bed.log("web")
    assert "systemd can't hear when this service is ready, as NOTIFY_SOCKET is not set" in log
    assert bed.inside("pgrep", "-f", "/srv/.*/bin/", check=False).stdout == ""


def test_control_group_cuts_what_servers_that_do_not_drain_have(bed: Bed) -> None:
    """The page says so: shown, so that nobody has to believe it."""
    broken(bed, "KillMode=control-group\n")
    bed.systemctl("start", "web")
    slow = Question(bed, WEB, "/sleep5")
    wait_for(lambda: generations(bed)[1]["active"] == 1, "the request")
    bed.systemctl("stop", "web")
    with pytest.raises(OSError, match=r"closed|reset"):
        slow.answer()
    assert bed.inside("pgrep", "-f", "/srv/.*/bin/", check=False).stdout == ""
