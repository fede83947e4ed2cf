"""bjoern with a listener that it is given."""

import socket

import bjoern
from wsgi import app

bjoern.server_run(socket.socket(fileno=3), app)
