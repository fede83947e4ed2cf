"""uvicorn as a worker of gunicorn that loses no request when it is replaced: ``gunicorn -k
fdhandoff.servers.gunicorn_uvicorn.Worker app:app`` in place of ``-k uvicorn_worker.UvicornWorker``.

Under ``fdhandoff-cli run`` connections move to the new generation; when gunicorn itself replaces its workers (HUP, USR2,
``max_requests``) their answers say ``Connection: close``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, ClassVar

try:
    import uvicorn
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker as Base
except ImportError as error:  # pragma: no cover - said to whoever runs it
    raise ImportError(
        f"this needs gunicorn and uvicorn: pip install 'gunicorn>=23' 'uvicorn>=0.54' ({error})"
    ) from None

from ..prefork import PreforkWorker
from .uvicorn import Server

if TYPE_CHECKING:
    from typing import Any

# How often gunicorn hears that we are alive; it kills who is silent for its --timeout.
_NOTIFY_SECONDS = 1.0


class Worker(Base):  # type: ignore[misc]
    """As ``uvicorn_worker.UvicornWorker``: ``CONFIG_KWARGS`` of a subclass are uvicorn's own options. ``--graceful-timeout``
    holds: what is still inside then is cut, and logged. The application finds the ``PreforkWorker`` as
    ``scope["state"]["fdhandoff"]``: its generation, whether it drains."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {}

    def init_signals(self) -> None:
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        signal.siginterrupt(signal.SIGUSR1, False)
        signal.signal(signal.SIGABRT, self.handle_abort)

    def run(self) -> None:
        for name, log in (("uvicorn.error", self.log.error_log), ("uvicorn.access", self.log.access_log)):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = log.handlers, False
            logger.setLevel(log.level)
        config = uvicorn.Config(**{**self._options(), **self.CONFIG_KWARGS})
        service = PreforkWorker.under_master(
            os.environ,
            [getattr(one, "sock", one) for one in self.sockets],
            grace=float(self.cfg.graceful_timeout),
            log=self.log.info,
        )
        with contextlib.closing(service):
            factory = config.get_loop_factory()
            loop = factory() if factory is not None else asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            try:
                loop.run_until_complete(self._serve(config, service))
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                loop.close()

    def _options(self) -> dict[str, Any]:
        """gunicorn's settings, as uvicorn's."""
        options: dict[str, Any] = {
            "app": self.wsgi,
            "log_config": None,
            "timeout_keep_alive": self.cfg.keepalive,
            "timeout_graceful_shutdown": self.cfg.graceful_timeout,
            "limit_max_requests": self.max_requests,
            "forwarded_allow_ips": self.cfg.forwarded_allow_ips,
        }
        if self.cfg.is_ssl:
            names = {"keyfile": "keyfile", "certfile": "certfile", "ca_certs": "ca_certs", "ciphers": "ciphers",
                     "cert_reqs": "cert_reqs", "ssl_version": "version", "password": "keyfile_password"}  # fmt: skip
            given = self.cfg.ssl_options
            options |= {f"ssl_{ours}": given[name] for name, ours in names.items() if given.get(name) is not None}
        return options

    async def _serve(self, config: uvicorn.Config, service: PreforkWorker) -> None:
        loop = asyncio.get_running_loop()
        ending = asyncio.Event()
        # gunicorn says TERM again every second: only QUIT and INT are in a hurry.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, self._told, number, service, ending)
        living = asyncio.create_task(self._live(service, ending))
        server = Server(config, service)
        try:
            await server.serve()
            if service.sent_away:  # gunicorn would start another in our place
                await ending.wait()
        except SystemExit:
            sys.exit(
                Arbiter.WORKER_BOOT_ERROR
            )  # the application did not start: gunicorn gives up, as with its own workers
        finally:
            living.cancel()

    def _told(self, number: int, service: PreforkWorker, ending: asyncio.Event) -> None:
        ending.set()
        if number == signal.SIGTERM:
            service.stop()
        else:
            self.cfg.worker_int(self)
            service.hurry()

    async def _live(self, service: PreforkWorker, ending: asyncio.Event) -> None:
        """Also while it drains. Without its parent it is nobody's."""
        while True:
            self.notify()
            if os.getppid() != self.ppid and not ending.is_set():
                self.log.info("Parent changed, shutting down: %s", self)
                ending.set()
                service.stop()
            await asyncio.sleep(_NOTIFY_SECONDS)
