"""What ``unit`` writes, read again by the service managers' own programs: every word of a command arrives as it was said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import kubernetes_validate
import pytest
import yaml

from fdhandoff import cli
from fdhandoff.cli import main
from fdhandoff.cli.unit import KINDS

from ...conftest import needs, needs_that

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Read = Callable[[Path], list[str]]

PROGRAM = "/bin/echo"
PACKAGE = cli.__name__.rpartition(".")[0]
#: What somebody's configuration language takes for something of its own.
WORDS = [
    "plain", "two words", "", " ", "it's", 'say "x"', "back\\slash", "\\n", "100%", "%t %%n %(x)s", "$HOME", "${HOME}", "$$",
    "$(id)", "`id`", "$(circus.env.path)", "$((circus.env.path))", "((circus.wid))", "$WID", "a;b", "daemon off; x", "a ;b",
    "a #b", "#x", ";", "a ; # b", "@x", "-x", "--", "~", "*", "a=b", "[x]", "{fd:http}", "ünï", "tab\there", "!x", "&& x",
    "'\"'\"'", "trailing\\",
]  # fmt: skip
LINES = "two\nlines\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that other users can look into, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as made:
        os.chmod(made, 0o755)
        yield Path(made)


def unit(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["unit", *words]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


# --- what the managers read ---------------------------------------------------------------------------------


def python(code: str, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def systemd_reads(folder: Path) -> list[str]:
    """The manager in test mode shows what it understood; ``$$`` stands for a dollar until the moment of starting."""
    there = "/lib/systemd/systemd"
    needs_that(os.path.exists(there), "systemd: apt-get install systemd")
    home = folder / "home"
    home.mkdir()
    for target in ("basic", "shutdown"):
        (folder / f"{target}.target").write_text("[Unit]\n")
    as_user = []
    if os.geteuid() == 0:  # which it refuses
        os.chown(home, 65534, 65534)
        as_user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    done = subprocess.run(
        [*as_user, there, "--test", "--user", "--unit=web.service"], capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "SYSTEMD_UNIT_PATH": str(folder)},
    )  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if "Command Line:" in line), None)
    assert line is not None, done.stdout + done.stderr
    shown = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line.partition("Command Line: ")[2])
    escapes = {"n": "\n", "t": "\t"}
    words = [
        plain or re.sub(r"\\(.)", lambda found: escapes.get(found[1], found[1]), quoted) for quoted, plain in shown
    ]
    assert all("$" not in word.replace("$$", "") for word in words)
    return [word.replace("$$", "$") for word in words]


def supervisord_reads(folder: Path) -> list[str]:
    main_file = folder / "main.conf"
    main_file.write_text(f"[supervisord]\nnodaemon=true\n[include]\nfiles={folder}/web.conf\n")
    code = """
import json, sys
from supervisor.options import ServerOptions
options = ServerOptions()
options.realize(["-c", sys.argv[1]])
config = options.process_group_configs[0].process_configs[0]
print(json.dumps(list(config.make_process().get_execv_args()[1])))
"""
    return python(code, str(main_file))


def circus_reads(folder: Path) -> list[str]:
    code = """
import json, sys
from circus.config import get_config
from circus.watcher import Watcher
from circus.process import Process
one = get_config(sys.argv[1])["watchers"][0]
assert one["copy_env"] and one["send_hup"] and one["graceful_timeout"] == 45.0, one
watcher = Watcher(one["name"], one["cmd"])
process = Process(one["name"], 1, one["cmd"], env=one["env"], spawn=False, watcher=watcher)
print(json.dumps(process.format_args()))
"""
    return python(code, str(folder / "web.ini"))


def script_runs(folder: Path) -> list[str]:
    """The script itself, with the program replaced by one that tells its arguments."""
    teller = folder / "teller"
    teller.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv))\n")
    teller.chmod(0o755)
    script = folder / "web" / "run"
    assert os.access(script, os.X_OK)
    script.write_text(script.read_text().replace(PROGRAM, str(teller), 1))
    done = subprocess.run([str(script)], capture_output=True, text=True, check=True)
    return [PROGRAM, *json.loads(done.stdout)[1:]]


def openrc_runs(folder: Path) -> list[str]:
    """As its supervise-daemon.sh does: the command and its arguments are evaluated once more."""
    tell = "import json, sys; print(json.dumps(sys.argv[1:]))"
    code = '. "$1"; tell=$2; eval set -- "$command" "$command_args"; exec "$0" -c "$tell" "$@"'
    done = subprocess.run(["sh", "-c", code, sys.executable, str(folder / "web"), tell], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def container_reads(folder: Path) -> list[str]:
    lines = (folder / "Containerfile").read_text().splitlines()
    return list(json.loads(next(line for line in lines if line.startswith("ENTRYPOINT ")).partition(" ")[2]))


def kubernetes_reads(folder: Path) -> list[str]:
    """``$$`` stands for a dollar there."""
    words = yaml.safe_load((folder / "web.yaml").read_text())["spec"]["template"]["spec"]["containers"][0]["command"]
    assert all("$" not in word.replace("$$", "") for word in words)
    return [word.replace("$$", "$") for word in words]


READERS: dict[str, Read] = {
    "systemd": systemd_reads,
    "supervisord": supervisord_reads,
    "s6": script_runs,
    "runit": script_runs,
    "circus": circus_reads,
    "openrc": openrc_runs,
    "container": container_reads,
    "kubernetes": kubernetes_reads,
}
ONE_LINE = ("supervisord", "circus")


def command_of(words: Sequence[str]) -> list[str]:
    return list(words[words.index("--") + 1 :])


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_arrives_as_it_was_said(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["prog", *WORDS, *([] if kind in ONE_LINE else [LINES])]
    options = ["--bind", "http=:8080", "--env=X=a ;b %n $Y", "--program", PROGRAM, "--output", str(folder)]
    unit(capsys, kind, "--name", "web", *options, "--", *said)
    words = READERS[kind](folder)
    assert words[:2] == [PROGRAM, "run"]
    assert command_of(words) == said
    assert "--env=X=a ;b %n $Y" in words


@pytest.mark.parametrize("kind", ONE_LINE)
def test_what_a_format_can_not_hold_is_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "knows only one: put it into a script" in unit(capsys, kind, "--", "prog", LINES, code=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["\x1b[2J", "\udce9", "\x7f"])
def test_what_no_file_should_hold_is_refused(kind: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not given that" in unit(capsys, kind, "--", "prog", word, code=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "../x", "a%n", "a]b", "a\nb", "-a", ".a", "a:b", "@", "x" * 64, "é"]
)
def test_a_name_that_would_be_misread_is_refused(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = unit(capsys, kind, f"--name={name}", "--", "prog", code=2)
    assert "can't name a service everywhere" in said or "it is empty" in said


@pytest.mark.parametrize("option", ["user", "group"])
@pytest.mark.parametrize("value", ["", "a b", "root\nExecStartPre=/bin/x", "%u", "-x", "a;b"])
def test_a_user_that_would_be_misread_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no user or group" in unit(capsys, "systemd", f"--{option}={value}", "--", "prog", code=2)


# --- how long its end may take ------------------------------------------------------------------------------

STOP = {
    "systemd": ("web.service", "TimeoutStopSec={}"),
    "supervisord": ("web.conf", "stopwaitsecs={}"),
    "s6": ("web/timeout-kill", "{}000"),
    "runit": ("web/run", "sv -w {} stop web"),
    "circus": ("web.ini", "graceful_timeout = {}"),
    "openrc": ("web", "retry=TERM/{}/KILL/5"),
    "container": ("Containerfile", "--stop-timeout {} "),
    "kubernetes": ("web.yaml", "terminationGracePeriodSeconds: {}"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_manager_waits_as_long_as_the_service_may_take(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, line = STOP[kind]
    longest = ["--pre-stop-delay", "7s", "--grace", "2m", "--kill-after", "20s"]
    unit(capsys, kind, "--name", "web", "--output", str(tmp_path), *longest, "--", "prog")
    assert line.format(7 + 120 + 20 + 5) in (tmp_path / name).read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_drain_without_end_is_never_cut(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, line = STOP[kind]
    unit(capsys, kind, "--name", "web", "--output", str(tmp_path), "--grace", "forever", "--", "prog")
    forever = {"systemd": "infinity", "s6": "0"}.get(kind, "31536000")
    assert (line.format(forever) if kind != "s6" else "0") in (tmp_path / name).read_text()


def test_a_timeout_that_would_cut_the_drain_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "too short: the service may take 45 s" in unit(capsys, "s6", "--stop-timeout", "20s", "--", "prog", code=2)
    assert "too short: the service may take for ever" in unit(
        capsys, "s6", "--stop-timeout", "1h", "--grace", "forever", "--", "prog", code=2
    )
    assert "stopwaitsecs=90\n" in unit(capsys, "supervisord", "--stop-timeout", "90s", "--", "prog")


def test_the_configuration_file_says_how_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    file = tmp_path / "run.toml"
    file.write_text('name = "web"\ncommand = ["prog"]\nbind = [":8080"]\ngrace = "100s"\n')
    text = unit(capsys, "supervisord", "--program", PROGRAM, "--config", str(file))
    assert "[program:web]\n" in text
    assert "stopwaitsecs=115\n" in text
    assert f"command={PROGRAM} run --name web --config={file}\n" in text, "what is in the file can change later"
    assert "there is no file" in unit(capsys, "supervisord", "--config", str(tmp_path / "none"), code=2)


# --- each manager's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [[], ["--user", "daemon", "--group", "daemon"], ["--socket"], ["--path", "/run/x/h.sock"]]
)
def test_systemd_finds_nothing_to_say_of_its_units(
    more: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binds = ["--bind", "http=127.0.0.1:80?backlog=512", "--bind", "admin=unix:/run/web-admin.sock?mode=0660"]
    unit(
        capsys,
        "systemd",
        "--name",
        "web",
        *binds,
        *more,
        "--program",
        PROGRAM,
        "--output",
        str(folder),
        "--",
        "true",
        "x y",
    )
    units = sorted(map(str, folder.iterdir()))
    done = subprocess.run(
        [needs("systemd-analyze", "systemd"), "verify", "--man=no", *units],
        capture_output=True, text=True, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
    )  # fmt: skip
    assert (done.returncode, [line for line in done.stderr.splitlines() if "web" in line]) == (0, [])
    assert len(units) == (3 if more == ["--socket"] else 1)


def test_a_user_who_may_not_bind_a_low_port_is_given_that_right_alone(capsys: pytest.CaptureFixture[str]) -> None:
    right = "AmbientCapabilities=CAP_NET_BIND_SERVICE"
    assert right in unit(capsys, "systemd", "--user", "www-data", "--bind", ":80", "--", "prog")
    assert right not in unit(capsys, "systemd", "--user", "www-data", "--bind", ":8080", "--", "prog")
    assert right not in unit(capsys, "systemd", "--bind", ":80", "--", "prog")
    assert right not in unit(capsys, "systemd", "--user", "www-data", "--bind", ":80", "--socket", "--", "prog")


@pytest.mark.parametrize("kind", ["supervisord", "s6", "runit", "circus", "openrc"])
def test_elsewhere_the_servers_alone_are_the_users(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--user=www-data --group=www-data" in unit(
        capsys, kind, "--user", "www-data", "--group", "www-data", "--bind", ":80", "--", "prog"
    )


def test_a_master_whose_listeners_systemd_binds_stays_roots(capsys: pytest.CaptureFixture[str]) -> None:
    """Or it could not give each generation a queue of its own."""
    said = unit(capsys, "systemd", "--user", "www-data", "--bind", ":80", "--socket", "--", "prog")
    assert " --user=www-data " in said
    assert "User=www-data\n" not in said


@pytest.mark.parametrize(
    ("bind", "reason"),
    [
        ("localhost:80", "systemd binds no names"),
        ("127.0.0.1:0", "has no port"),
        ("unix:here.sock", "is relative"),
        ("/run/a\nExecStart=x", "has several lines"),
    ],
)
def test_what_systemd_can_not_bind_is_refused(bind: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reason in unit(capsys, "systemd", "--socket", "--bind", bind, "--", "prog", code=2)


def test_only_systemd_binds_for_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--socket is systemd's" in unit(capsys, "s6", "--socket", "--bind", ":80", "--", "prog", code=2)
    assert "--socket needs a --bind" in unit(capsys, "systemd", "--socket", "--", "prog", code=2)


@pytest.mark.parametrize("health", [[], ["--health", ":9000"]])
@pytest.mark.parametrize("user", [[], ["--user", "1000", "--group", "1000"]])
def test_the_manifest_is_one(health: list[str], user: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = [
        "--bind",
        "http=:8080",
        "--bind",
        "udp:[::]:53",
        "--bind",
        "unix:/x",
        "--image",
        "r.example/web:7",
        "--replicas",
        "3",
    ]
    manifest = yaml.safe_load(
        unit(capsys, "kubernetes", "--name", "web", *said, *health, *user, "--", "prog", "yes", "1.0")
    )
    kubernetes_validate.validate(manifest, "1.30", strict=True)
    pod = manifest["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == "r.example/web:7"
    assert manifest["spec"]["replicas"] == 3
    assert [(port["containerPort"], port["protocol"]) for port in container["ports"]] == [(8080, "TCP"), (53, "UDP")]
    assert container["lifecycle"]["preStop"]["exec"]["command"][1:] == ["drain", "--name", "web", "--wait"]
    for probe, path in (("readinessProbe", "/ready"), ("livenessProbe", "/live")):
        assert container[probe]["httpGet"] == {"path": path, "port": 8086 if not health else 9000}
    assert ("--health=:8086" in container["command"]) is not bool(health)
    assert "--pre-stop-delay=5s" in container["command"], "until the routing has heard"
    assert pod["terminationGracePeriodSeconds"] == 50
    assert pod["securityContext"].get("runAsUser") == (1000 if user else None)


def test_what_kubernetes_would_refuse_is_refused_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert "small letters" in unit(capsys, "kubernetes", "--name", "Web_1", "--", "prog", code=2)
    assert "by their numbers" in unit(capsys, "kubernetes", "--user", "www-data", "--", "prog", code=2)
    assert "has no port" in unit(capsys, "kubernetes", "--bind", ":0", "--", "prog", code=2)
    assert "is no TCP port" in unit(capsys, "kubernetes", "--health", "unix:/x", "--", "prog", code=2)


@pytest.mark.parametrize("kind", ["s6", "runit", "openrc"])
def test_the_shell_finds_no_fault(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit(capsys, kind, "--name", "web", "--output", str(tmp_path), "--", "prog", *WORDS, LINES)
    scripts = [path for path in tmp_path.rglob("*") if path.is_file() and os.access(path, os.X_OK)]
    assert scripts
    for script in scripts:
        for shell in filter(shutil.which, ("sh", "bash", "busybox")):
            words = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
            subprocess.run([*words, str(script)], check=True)


# --- printing and writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_printed_is_what_is_written(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["--name", "web", "--bind", ":8080", "--program", PROGRAM, "--", "prog"]
    printed = unit(capsys, kind, *said)
    told = unit(capsys, kind, "--output", str(tmp_path), *said)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(told.split()) == sorted(["wrote"] * len(files) + [str(path) for path in files])
    for file in files:
        assert file.read_text() in printed
        assert len(files) == 1 or f"/{file.relative_to(tmp_path)}" in printed


def test_a_file_that_differs_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["supervisord", "--name", "web", "--output", str(tmp_path)]
    unit(capsys, *said, "--", "prog")
    unit(capsys, *said, "--", "prog")
    assert "is there already, and differs" in unit(capsys, *said, "--", "another", code=1)
    assert "prog" in (tmp_path / "web.conf").read_text()
    unit(capsys, *said, "--force", "--", "another")
    assert "another" in (tmp_path / "web.conf").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["web.conf"]


def test_a_place_that_can_not_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    said = unit(capsys, "s6", "--output", str(tmp_path / "file"), "--", "prog", code=3)
    assert "file" in said


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([], "the following arguments are required: MANAGER"),
        (["upstart", "--", "prog"], "invalid choice"),
        (["s6"], "say which command"),
        (["s6", "--"], "say which command"),
        (["s6", "--", ""], "say which command"),
        (["s6", "--grace", "soon", "--", "prog"], "is not a duration"),
        (["s6", "--bind", "nowhere", "--", "prog"], "has no port"),
        (["kubernetes", "--replicas", "-1", "--", "prog"], "is no number of pods"),
    ],
)
def test_wrong_usage_is_one_sentence(said: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = unit(capsys, *said, code=2)
    assert reason in told
    assert told.count("\n") == 1
