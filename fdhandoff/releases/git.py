"""``git:URL#REF``: what a branch or tag of a git repository leads to, a directory for each commit."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from pathlib import Path

from . import Found, Refused, Settings, Source, SourceError, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_SIGNERS = "signers:"
_TAG_LETTERS = 12
_FILE_MIN = 1 << 20
# Nobody is there to be asked, and nothing of the repository or its server is executed.
_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "LC_ALL": "C"}
_SETTINGS = ("core.hooksPath=/dev/null", "protocol.ext.allow=never", "advice.detachedHead=false", "gc.auto=0")


class GitSource(Source):
    def __init__(self, where: str, settings: Settings) -> None:
        super().__init__(where, settings)
        self.url, _, ref = where.partition("#")
        self.ref = ref or "HEAD"
        if not self.url or self.url.startswith("-") or self.ref.startswith("-"):
            raise SourceError(f"{where!r} is no repository: say git:URL, or git:URL#BRANCH")
        if (
            "@" in self.url.partition("://")[2].partition("/")[0]
            and ":" in self.url.partition("://")[2].partition("@")[0]
        ):
            raise SourceError(
                "a password in a URL is seen by everybody: leave it to git's credential helper, or to ssh"
            )
        self.remote = not os.path.isdir(self.url)
        if settings.verify and not settings.verify.startswith(_SIGNERS):
            raise SourceError(f"a commit is verified by --verify {_SIGNERS}FILE, with those whose signatures count")
        self._signers = settings.verify.removeprefix(_SIGNERS)

    def look(self, _: Mapping[str, Any]) -> Found:
        told = self._git("ls-remote", "--", self.url, self.ref, f"{self.ref}^{{}}")
        lines = [line.split("\t") for line in told.splitlines()]
        refs = {name: commit for commit, name in (line for line in lines if len(line) == 2)}
        wanted = (self.ref, f"refs/heads/{self.ref}", f"refs/tags/{self.ref}^{{}}", f"refs/tags/{self.ref}")
        name = next((name for name in wanted if name in refs), "")
        if not name:
            raise SourceError(f"{self.url} has no branch or tag {self.ref!r}")
        return Found(refs[name], tag_of(refs[name][:_TAG_LETTERS]), {"ref": name.removesuffix("^{}")})

    def fetch(self, found: Found, into: Path) -> Path:
        repository, release = into / "repository", into / "release"
        release.mkdir()
        inside = (f"--git-dir={repository}", f"--work-tree={release}")
        self._git("init", "--quiet", "--bare", str(repository))
        self._git(*inside, "fetch", "--quiet", "--depth=1", "--", self.url, found.state["ref"])
        commit = self._git(*inside, "rev-parse", "FETCH_HEAD^{commit}").strip()
        if commit != found.identity:
            raise SourceError(f"{self.ref} of {self.url} moved on while it was fetched")
        if self._signers:
            self._verify(commit, inside)
        elif self.remote:
            self.settings.say(f"commit {commit} is NOT VERIFIED: whoever can push there runs what they like here")
        self._check_tree(commit, inside)
        self._git(*inside, "checkout", "--quiet", "--force", commit, "--", ".")
        return release

    def _verify(self, commit: str, inside: tuple[str, ...]) -> None:
        signers = os.path.abspath(self._signers)
        try:
            self._git("-c", f"gpg.ssh.allowedSignersFile={signers}", *inside, "verify-commit", commit)
        except SourceError as error:
            raise Refused(f"commit {commit} is not signed by anybody in {signers}: {error}") from None

    def _check_tree(self, commit: str, inside: tuple[str, ...]) -> None:
        rows = [
            row.split(None, 4) for row in self._git(*inside, "ls-tree", "-r", "--long", "-z", commit).split("\0") if row
        ]
        size = sum(int(row[3]) for row in rows if row[3].isdigit())
        if size > self.settings.size_max:
            raise Refused(f"commit {commit} has {size} bytes, more than --fetch-max allows")
        modules = [row[4] for row in rows if row[1] == "commit"]
        if modules:
            self.settings.say(
                f"the submodules of commit {commit} are not followed, and are empty: {', '.join(modules)}"
            )

    def _limit_files(self) -> None:
        """What comes is one file, whose size nobody tells before it is here. The signal that says so is ignored by Python."""
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        most = max(self.settings.size_max, _FILE_MIN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))

    def _git(self, *words: str) -> str:
        settings = [word for setting in _SETTINGS for word in ("-c", setting)]
        try:
            done = subprocess.run(
                ["git", *settings, *words],
                capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT}, preexec_fn=self._limit_files, restore_signals=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise SourceError("to watch a repository the program git is needed: apt-get install git") from None
        if done.returncode:
            if os.strerror(errno.EFBIG) in done.stderr:
                raise Refused(f"{self.url} sends more than --fetch-max allows")
            lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
            raise SourceError(f"git: {lines[0].removeprefix('fatal: ').removeprefix('error: ')}")
        return done.stdout


SOURCE = GitSource
