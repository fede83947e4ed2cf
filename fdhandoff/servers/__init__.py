"""Adapters for servers: one module each, called as the server is.

What an adapter does, so that others can be added (docs/how-to/servers/custom.md):

1. It makes a ``Service``, and its listeners by ``service.listen``; the server binds nothing itself.
2. It lets the application start, and then says ``service.ready()``; nothing is accepted before that returns.
3. It accepts through the service (``serve``, ``serve_async``, ``Passage``), so that every connection is inside the gate until
   it is closed, also one that left the server's own books.
4. When the service drains, it stops accepting, and everything that was accepted is answered: who waits for a next request moves
   to the generation that serves (``Passage``), or is told ``Connection: close`` with the next answer. It closes no idle
   connection before that.
5. It waits with ``service.drain()``, which reports what was cut at the deadline, and only then has the server shut down.
6. It installs no handlers for signals: the service has them.
"""
