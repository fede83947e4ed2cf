"""One door to the operating system per module. Floor 2: imports the words of floor 0 and its own floor, nothing else.

``native`` is the only importer of the compiled module; ``fds`` says what a descriptor is; ``environment`` and
``notify`` speak the supervisors' two conventions; ``sockets`` binds; ``process`` watches and starts; ``paths`` guards
the handoff path; ``pidfile`` keeps the number that others look for.
"""
