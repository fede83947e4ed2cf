"""CherryPy, which takes descriptor 3 by itself."""

import os
import time

import cherrypy
from cheroot.server import HTTPServer

NUMBER = os.environ["FDHANDOFF_GENERATION"]


class Root:
    @cherrypy.expose
    def default(self, *path):
        size = len(cherrypy.request.rfile.read(int(cherrypy.request.headers.get("Content-Length", "0"))))
        if path[:1] == ("slow",):
            time.sleep(float(path[1]))
        return f"app {NUMBER} {size}".encode() + b" " * (500_000 if path == ("big",) else 0)


if __name__ == "__main__":
    HTTPServer.keep_alive_conn_limit = 1000  # cheroot's own, of 10, ends connections by itself
    options = {"log.screen": False, "engine.autoreload.on": False, "server.thread_pool": 24}
    cherrypy.quickstart(Root(), config={"global": options, "/": {"request.process_request_body": False}})
