"""A Django project in one file, by ``run`` of the adapter; answers name the generation: ``/slow/…``, ``/big``, anything
else at once."""

from __future__ import annotations

import sys

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import re_path
from probation import SECONDS
from slow import wait

from fdhandoff.servers.django import run


def answer(request: HttpRequest, path: str) -> HttpResponse:
    size = len(request.body)
    if path.startswith("slow/"):
        wait(path[5:])
    generation = request.META["fdhandoff"].generation.number
    body = f"app {generation} {size}".encode() + b" " * (500_000 if path == "big" else 0)
    return HttpResponse(body, headers={"Content-Length": str(len(body))})


urlpatterns = [re_path("^(.*)$", answer)]


def main() -> None:
    port, path = sys.argv[1:]
    settings.configure(
        DEBUG=False, SECRET_KEY="of a test", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"],
        LOGGING_CONFIG=None,
    )  # fmt: skip
    run(
        "127.0.0.1", int(port), get_wsgi_application(), handoff_name="django", handoff_path=path, handoff_probation=SECONDS,
        grace=20,
    )  # fmt: skip


if __name__ == "__main__":
    main()
