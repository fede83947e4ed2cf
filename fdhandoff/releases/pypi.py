"""``pypi:NAME``: the newest version of a package that an index has, in a virtual environment of its own with all that it needs.

The page of the package and its own wheel are read by us; what it needs is chosen and fetched by pip, in a child, and compared
with what the index says of it before anything is installed. Only wheels: to build one is to run what nobody has looked at.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import lzma
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
import zipfile
import zlib
from hmac import compare_digest
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ..system.environment import WATCH_AUTHORIZATION as AUTHORIZATION
from . import Broken, Found, Refused, Settings, Source, SourceError, options_in, tag_of
from .artefact import verification_of
from .http import Client, authorization, forbid_password, is_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

_INDEX = "PIP_INDEX_URL"
_JSON = "application/vnd.pypi.simple.v1+json"
_HTML = ("application/vnd.pypi.simple.v1+html", "text/html")
_ACCEPT = f"{_JSON}, {_HTML[0]};q=0.2, {_HTML[1]};q=0.01"
_PAGE_MAX = 64 << 20
_ALGORITHMS = ("sha256", "sha384", "sha512")
_PART = 1 << 18
_REASON_MAX = 500
_NAMES_MAX = 10
_METADATA_MAX = 1 << 20
_BESIDE_MAX = 1 << 20
_MAKING = ".making"  # in the environment, until it is whole
# Of pip's own settings those that change nothing of what is installed.
_KEPT = ("PIP_CACHE_DIR", "PIP_NO_CACHE_DIR")
# What pip says when another try would end in the same way, unless a page or a file could not be had.
_FOR_GOOD = ("No matching distribution found", "conflicting dependencies", "ResolutionImpossible", "has inconsistent")
_UNREACHABLE = re.compile(r"Could not fetch URL (?!.*404 Client Error)|HTTP error (?!404)\d+|WARNING: Retrying")


class PypiSource(Source):
    def __init__(self, where: str, settings: Settings) -> None:
        super().__init__(where, settings)
        self._libraries = _Libraries()
        text, chosen = options_in(where, ("index",))
        try:
            self._wanted = self._libraries.requirements.Requirement(text)
        except self._libraries.requirements.InvalidRequirement:
            self._wanted = None
        if self._wanted is None or self._wanted.url or self._wanted.marker:
            raise SourceError(f"{text!r} is no package: say pypi:NAME, as in pypi:web[prod]>=2,<3")
        self._name: str = self._libraries.utils.canonicalize_name(self._wanted.name)
        self._full_name = self._name + f"[{','.join(sorted(self._wanted.extras))}]" * bool(self._wanted.extras)
        self._index, self._user, self._password = self._who(chosen.get("index", ""))
        if settings.verify.startswith("checksum:"):
            raise SourceError("an index says the checksum of a file itself: --verify checksum")
        # Who signed the package itself; what the index says of each file is compared in any case.
        self._signature = verification_of(settings) if settings.verify != "checksum" else None
        if settings.verify and not is_private(self._index):
            raise SourceError(
                f"what {self._index} says can be changed on its way, the checksums too: name it by https, or waive "
                "verification by --insecure-skip-verify"
            )
        if self._password and not is_private(self._index):
            raise SourceError(f"a password for {self._index} could be read on its way: name it by https")
        token = base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        self._client = Client(f"Basic {token}" if self._password else "")
        self._stranger = Client()

    def _who(self, index: str) -> tuple[str, str, str]:
        """The index without a slash at its end, and who we are there."""
        forbid_password(index)
        told = index or os.environ.get(_INDEX, "") or self._libraries.endpoint()
        parts = urlsplit(told)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SourceError("the index is to be named by a URL, as in index=https://index.example/simple/")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        said = authorization()
        if said:
            user, password = _credentials(said)
        elif user and not password:
            user, password = "__token__", user
        bare = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=bare, query="", fragment="")).rstrip("/"), user, password

    # --- what there is ------------------------------------------------------------------------------------------

    def look(self, state: Mapping[str, Any]) -> Found:
        etag = state.get("etag", "") if state.get("identity") else ""
        page = self._page(self._name, etag)
        if page is None:
            return Found(state["identity"], state["tag"], dict(state))
        files, etag = [file for file in page[0] if not file["yanked"]], page[1]
        newest = self._newest(files)
        there = [file for file in files if file["version"] == newest]
        wheel = self._best(there)
        if wheel is not None:
            identity = f"{self._full_name}=={newest} {wheel['name']} {wheel['hash']}"
        else:
            # When something is added to the same version, that is looked at anew.
            whole = hashlib.sha256("\0".join(sorted(f"{file['name']} {file['hash']}" for file in there)).encode())
            identity = f"{self._full_name}=={newest} {whole.hexdigest()}"
        tag, names = tag_of(newest), sorted(file["name"] for file in there)[:_NAMES_MAX]
        facts = {"etag": etag, "identity": identity, "tag": tag, "version": newest, "wheel": wheel, "files": names}
        return Found(identity, tag, facts)

    def _page(self, name: str, etag: str = "") -> tuple[list[dict[str, Any]], str] | None:
        """The files of a package, wheels and others, and the page's validator; nothing if it has not changed."""
        url = f"{self._index}/{name}/"
        headers = {"Accept": _ACCEPT, **({"If-None-Match": etag} if etag else {})}
        answer, place, body = self._client.read(url, headers, _PAGE_MAX)
        if answer.status == 304 and etag:
            return None
        if self.settings.verify and not is_private(place):
            raise SourceError(f"{url} leads to {place}, where what it says can be changed on its way")
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != _JSON and kind not in _HTML:
            raise SourceError(f"{url} is no page of an index: it is {kind or 'of no type'}")
        told = self._libraries.parsed(name, body, place, kind == _JSON)
        if told is None:
            raise SourceError(f"{url} is no page of an index that can be understood")
        files = [file for file in (self._facts(name, one) for one in told) if file is not None]
        return files, answer.headers.get("ETag", "")

    def _facts(self, name: str, told: Any) -> dict[str, Any] | None:
        """What we need of a file; nothing where it is not of the package, or is for another Python."""
        utils, wheel = self._libraries.utils, told.filename.endswith(".whl")
        try:
            parsed = (utils.parse_wheel_filename if wheel else utils.parse_sdist_filename)(told.filename)
        except ValueError:
            return None
        if parsed[0] != name or "/" in told.filename or not self._libraries.suits(told.requires_python):
            return None
        algorithm = next((one for one in _ALGORITHMS if told.digests.get(one)), "")
        digest = told.digests[algorithm].lower() if algorithm else ""
        return {
            "name": told.filename, "version": str(parsed[1]), "url": told.url, "wheel": wheel,
            "hash": f"{algorithm}:{digest}" if digest else "", "yanked": told.is_yanked,
        }  # fmt: skip

    def _newest(self, files: Iterable[dict[str, Any]]) -> str:
        specifier, parse = self._wanted.specifier, self._libraries.version.Version
        early = bool(specifier.prereleases)  # where the operator names one
        versions = [version for version in {parse(file["version"]) for file in files}
                    if specifier.contains(version, prereleases=early)]  # fmt: skip
        if not versions:
            what = str(self._wanted.specifier) or "is no pre-release"
            raise SourceError(f"{self._index} has no version of {self._name} for this Python that fits: {what}")
        return str(max(versions))

    def _best(self, files: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        """The wheel that this machine likes most."""
        rank = {tag: place for place, tag in enumerate(self._libraries.tags.sys_tags())}
        fits = []
        for file in files:
            if file["wheel"]:
                _, _, build, tags = self._libraries.utils.parse_wheel_filename(file["name"])
                places = [rank[tag] for tag in tags if tag in rank]
                if places:
                    fits.append((-min(places), build, file["name"], file))
        return max(fits, key=lambda one: one[:3])[3] if fits else None

    # --- how it comes -------------------------------------------------------------------------------------------

    def fetch(self, found: Found, into: Path) -> Path:
        wheel, version = found.state["wheel"], found.state["version"]
        if wheel is None:
            there = ", ".join(found.state["files"])
            raise Broken(f"{self._name} {version} has no wheel that fits this machine: there are {there}")
        if not self.settings.verify:
            self.settings.say(
                f"{self._name} {version} is NOT VERIFIED: whoever can change it on its way runs what they like here"
            )
        environment = into / "environment"
        wheels = environment / _MAKING
        wheels.mkdir(parents=True)
        self._fetch_wheel(wheel, wheels / wheel["name"])
        if b"\nRequires-Dist:" in _look_into(wheels / wheel["name"])[0]:
            self._fetch_needs(wheels, wheel["name"], into)
            self._compare(path for path in wheels.iterdir() if path.name != wheel["name"])
        size = sum(_look_into(path)[1] for path in wheels.iterdir())
        if size > self.settings.size_max:
            raise Refused(
                f"{self._name} {version} has {size} bytes with all that it needs, more than --fetch-max allows"
            )
        return environment

    def _fetch_wheel(self, wheel: Mapping[str, Any], path: Path) -> None:
        algorithm, _, wanted = wheel["hash"].partition(":")
        if self.settings.verify and not algorithm:
            raise Refused(f"{self._index} gives no SHA-2 checksum of {wheel['name']}")
        whole = hashlib.new(algorithm or "sha256")
        same = urlsplit(wheel["url"])[:2] == urlsplit(self._index)[:2]
        client = self._client if same else self._stranger
        with path.open("xb") as file:
            for part in client.download(wheel["url"], "", self.settings):
                whole.update(part)
                file.write(part)
        if wanted and not compare_digest(whole.hexdigest(), wanted):
            raise Refused(f"{path.name} is not what the index says: {whole.hexdigest()} instead of {wanted}")

        def beside(_: str, suffix: str) -> bytes:
            parts = urlsplit(wheel["url"])
            url = urlunsplit(parts._replace(path=parts.path + suffix))
            return b"".join(client.download(url, "", Settings(size_max=_BESIDE_MAX)))

        if self._signature is not None:
            self._signature.check(path, beside)

    def _fetch_needs(self, wheels: Path, name: str, into: Path) -> None:
        """What the package needs, beside it."""
        log = into / "log"
        extras = self._full_name[len(self._name) :]
        words = ["download", "--only-binary", ":all:", "--dest", str(wheels), "--log", str(log)]
        words.append(f"{wheels / name}{extras}")
        if not is_private(self._index):  # and that was waived
            words += ["--trusted-host", urlsplit(self._index).netloc]
        parts = urlsplit(self._index)
        who = f"{quote(self._user, safe='')}:{quote(self._password, safe='')}@" if self._password else ""
        # Not in the command line, which everybody can read.
        index = urlunsplit(parts._replace(netloc=who + parts.netloc, path=f"{parts.path}/"))
        output = self._pip(words, into, {_INDEX: index})
        if output is not None and "DO NOT MATCH THE HASHES" in output:
            raise Refused("a file that it needs is not what the index says, or did not come whole")
        if output is not None:
            told = log.read_text(errors="replace") if log.exists() else ""
            for_good = any(text in output for text in _FOR_GOOD) and not _UNREACHABLE.search(told)
            raise (Broken if for_good else SourceError)(f"what it needs can't be had: {self._reason(output)}")

    def _compare(self, wheels: Iterable[Path]) -> None:
        """Each with what the index says of it, where we are to verify: pip compares only where it says something."""
        for path in wheels if self.settings.verify else ():
            name = self._libraries.utils.parse_wheel_filename(path.name)[0]
            page = self._page(name)
            told = next((file["hash"] for file in (page[0] if page else ()) if file["name"] == path.name), "")
            algorithm, _, wanted = told.partition(":")
            if not algorithm:
                raise Refused(f"{self._index} gives no SHA-2 checksum of {path.name}")
            with path.open("rb") as file:
                whole = hashlib.new(algorithm)
                while part := file.read(_PART):
                    whole.update(part)
            if not compare_digest(whole.hexdigest(), wanted):
                raise Refused(f"{path.name} is not what the index says: {whole.hexdigest()} instead of {wanted}")

    # --- and how it is installed --------------------------------------------------------------------------------

    def settle(self, found: Found, release: Path) -> None:
        """Scripts name the interpreter by its whole path, so an environment is made where it stays."""
        wheels = release / _MAKING
        output = self._run(["-m", "venv", "--without-pip", str(release)], wheels, {})
        if output is not None:
            raise SourceError(f"an environment can't be made: {self._reason(output)}")
        words = ["--python", str(release / "bin" / "python"), "install", "--no-index", "--find-links", str(wheels)]
        output = self._pip([*words, f"{self._full_name}=={found.state['version']}"], wheels, {})
        if output is not None:
            text = f"{self._name} {found.state['version']} can't be installed: {self._reason(output)}"
            raise (SourceError if "due to an OSError" in output else Broken)(text)
        shutil.rmtree(wheels)

    def _pip(self, words: Sequence[str], folder: Path, environ: Mapping[str, str]) -> str | None:
        common = ["-m", "pip", "--disable-pip-version-check", "--no-input", "--no-color", "--retries", "3"]
        return self._run([*common, *words], folder, environ)

    def _run(self, words: Sequence[str], folder: Path, environ: Mapping[str, str]) -> str | None:
        """Python, with nothing of our own environment's: nothing where it succeeded, else what it said. What has nothing to do
        with the release is raised: a full disk, or more than was allowed."""
        temporary = folder / "temporary"
        temporary.mkdir(exist_ok=True)
        env = {
            name: value
            for name, value in os.environ.items()
            if (not name.startswith(("PIP_", "PYTHON", "FDHANDOFF_")) or name in _KEPT) and name != "VIRTUAL_ENV"
        }
        if "SSL_CERT_FILE" in env:
            env["PIP_CERT"] = env["SSL_CERT_FILE"]
        env.update({"PIP_CONFIG_FILE": os.devnull, "TMPDIR": str(temporary), "LC_ALL": "C.UTF-8", **environ})
        size = self.settings.size_max

        def limit() -> None:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard)
            )

        done = subprocess.run(
            [sys.executable, *words], cwd=temporary, env=env, preexec_fn=limit, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        shutil.rmtree(temporary)
        if not done.returncode:
            return None
        if done.returncode < 0:
            raise SourceError(f"what installs it was killed by signal {-done.returncode}")
        if "No module named" in done.stdout:  # ours: a wheel runs nothing
            raise SourceError(self._reason(done.stdout))
        full = next((text for text in ("No space left on device", "Disk quota exceeded") if text in done.stdout), "")
        if full:
            raise SourceError(full)
        if "File too large" in done.stdout:
            raise Refused("a file of it has more bytes than --fetch-max allows")
        return done.stdout

    def _reason(self, output: str) -> str:
        """The first complaint, without what is nobody's business."""
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        said = [line.partition("ERROR:")[2].strip() for line in lines if line.startswith("ERROR:")]
        text = next(iter(said or lines[-1:]), "it said nothing")[:_REASON_MAX]
        for secret in (self._password, quote(self._password, safe="")):
            text = text.replace(secret, "…") if secret else text
        return text


def _credentials(said: str) -> tuple[str, str]:
    """Whom pip can be: a user with a password."""
    kind, _, rest = said.partition(" ")
    if not rest:
        return "__token__", kind
    try:
        user, colon, password = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        colon = ""
    if kind.lower() != "basic" or not colon:
        raise SourceError(f"an index takes a token alone in {AUTHORIZATION}, or Basic with a user and a password")
    return user, password


def _look_into(path: Path) -> tuple[bytes, int]:
    """The metadata of a wheel, and how large it is unpacked. ``Broken`` if it is none: it came whole, as the index has it."""
    try:
        with zipfile.ZipFile(path) as wheel:
            members = wheel.infolist()
            name = next((one.filename for one in members if one.filename.endswith(".dist-info/METADATA")), "")
            if not name:
                raise Broken(f"{path.name} is no wheel: it has no METADATA")
            with wheel.open(name) as file:
                metadata = file.read(_METADATA_MAX)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise Broken(f"{path.name} is no wheel: {' '.join(str(error).split())}") from None
    return metadata, sum(member.file_size for member in members)


class _Libraries:
    """What others know better than we, imported when it is needed."""

    def __init__(self) -> None:
        missing = [name for name in ("packaging", "pypi_simple", "pip") if find_spec(name) is None]
        if missing:
            raise SourceError(f"to watch an index the package {missing[0]} is needed: pip install 'fdhandoff[pypi]'")
        self.requirements: Any = import_module("packaging.requirements")
        self.specifiers: Any = import_module("packaging.specifiers")
        self.tags: Any = import_module("packaging.tags")
        self.utils: Any = import_module("packaging.utils")
        self.version: Any = import_module("packaging.version")

    def endpoint(self) -> str:
        """Where everybody's index is."""
        return str(import_module("pypi_simple").PYPI_SIMPLE_ENDPOINT)

    def suits(self, requires_python: str | None) -> bool:
        """Whether our Python will do; what can't be read forbids nothing, as with pip."""
        try:
            wanted = self.specifiers.SpecifierSet(requires_python or "")
        except ValueError:
            return True
        return bool(wanted.contains(".".join(map(str, sys.version_info[:3])), prereleases=True))

    def parsed(self, name: str, body: bytes, place: str, is_json: bool) -> list[Any] | None:
        """The files on a page. Its library is large, and not needed while nothing changes."""
        simple: Any = import_module("pypi_simple")
        page = simple.ProjectPage
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a newer index says more than we ask for
            try:
                told = page.from_json_data(json.loads(body), place) if is_json else page.from_html(name, body, place)
            except (ValueError, TypeError, simple.UnsupportedRepoVersionError):
                return None
        files: list[Any] = told.packages
        return files


SOURCE = PypiSource
