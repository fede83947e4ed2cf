"""Django's ``runserver``, without its checks, with a listener that it is given: a project in one file."""

import os
import socket
import time

from django.conf import settings
from django.core.servers.basehttp import WSGIServer, run
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import re_path

NUMBER = os.environ["FDHANDOFF_GENERATION"]


def answer(request, path):
    if path.startswith("slow/"):
        time.sleep(float(path[5:]))
    body = f"app {NUMBER} {len(request.body)}".encode() + b" " * (500_000 if path == "big" else 0)
    return HttpResponse(body, headers={"Content-Length": str(len(body))})


class Server(WSGIServer):
    def server_bind(self):
        self.socket.close()
        self.socket = socket.socket(fileno=3)
        self.server_name, self.server_port = self.socket.getsockname()
        self.setup_environ()


urlpatterns = [re_path("^(.*)$", answer)]
settings.configure(SECRET_KEY="of a test", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)
run("127.0.0.1", 0, get_wsgi_application(), threading=True, server_cls=Server)
