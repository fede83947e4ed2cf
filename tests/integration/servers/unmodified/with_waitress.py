"""waitress with a listener that it is given."""

import socket

from waitress import create_server
from wsgi import app

create_server(app, sockets=[socket.socket(fileno=3)], threads=16).run()
