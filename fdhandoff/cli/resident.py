"""The process that stays: run as a program, by an interpreter with nothing in it. See ``staying``, which starts it.

What it may import is listed here, and held by tests: each module counts for the whole life of a service.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any

    #: A module's code, its file, and the folders of a package.
    Entry = tuple[CodeType, str, list[str]]

# The descriptor of what is handed over, in the environment.
HANDED = "FDHANDOFF_RUN"

# Of this package.
MODULES = (
    "cli",
    "cli.outcome",
    "cli.serving",
    "control",
    "conversation",
    "deadline",
    "errors",
    "inventory",
    "listener",
    "master",
    "master.announce",
    "master.config",
    "master.conventions",
    "master.drain",
    "master.ears",
    "master.ending",
    "master.giver",
    "master.journal",
    "master.keeping",
    "master.listeners",
    "master.loop",
    "master.master",
    "master.options",
    "master.outlet",
    "master.outlets",
    "master.output",
    "master.preflight",
    "master.readiness",
    "master.renaming",
    "master.report",
    "master.resume",
    "master.rights",
    "master.rollout",
    "master.room",
    "master.run",
    "master.splitting",
    "master.store",
    "master.tasks",
    "master.toml",
    "master.verbs",
    "notation",
    "protocol",
    "protocol.frames",
    "protocol.messages",
    "protocol.session",
    "protocol.states",
    "registry",
    "signals",
    "successor",
    "system",
    "system.access",
    "system.adoption",
    "system.attention",
    "system.capabilities",
    "system.channel",
    "system.connections",
    "system.environment",
    "system.fds",
    "system.hearing",
    "system.kin",
    "system.memory",
    "system.native",
    "system.notify",
    "system.paths",
    "system.prober",
    "system.process",
    "system.processes",
    "system.relay",
    "system.signalpipe",
    "system.sockets",
    "system.switch",
    "system.wake",
)


class Handed:
    """Finds the modules that were handed over, and runs their code."""

    def __init__(self, modules: dict[str, Entry]) -> None:
        self._modules = modules

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name not in self._modules:
            return None
        file, folders = self._modules[name][1:]
        # By the type of one that is there: the module that it comes from would bring others along.
        make: Any = type(sys.__spec__)
        spec: ModuleSpec = make(name, self, origin=file, is_package=bool(folders))
        spec.has_location = bool(file)
        spec.submodule_search_locations = folders or None
        return spec

    def create_module(self, _: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._modules.pop(module.__name__)[0], module.__dict__)  # noqa: S102 - as every import does


def main() -> int:
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # this folder: its modules are the package's, whatever they are called
    import marshal
    import os

    if HANDED not in os.environ:
        sys.stderr.write("fdhandoff-cli: this program is a part of run, which starts it: fdhandoff-cli run --help\n")
        return 2
    with open(int(os.environ.pop(HANDED)), "rb") as file:
        file.seek(0)
        handed = marshal.load(file)  # noqa: S302 - this very process wrote it, before its exec
    sys.path[:] = handed["path"]
    sys.orig_argv[:] = handed["command"]
    sys.meta_path.insert(0, Handed(handed["modules"]))
    try:
        with open("/proc/self/comm", "wb") as comm:
            comm.write(handed["name"])
    except OSError:
        pass  # only what ps shows
    serving: Any = __import__(f"{handed['package']}.cli.serving", fromlist=["begin"])
    return int(serving.begin(*handed["options"], *handed["file"]))


if __name__ == "__main__":
    sys.exit(main())
