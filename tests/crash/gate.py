"""The other end of the daemon's sync gate (src/base/syncgate.h): it stops at each sync."""

import os
import socket
import threading


class Gate:
    """Calls visit(when, number, call, path) at every sync of the daemon, before it is made and
    after it succeeded; the daemon goes on when visit() returns."""

    def __init__(self, directory, visit):
        self.path = os.path.join(directory, "gate")
        self.visit = visit
        self.failure = None
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if os.path.lexists(self.path):
            os.unlink(self.path)
        # a short name: the path of a socket has 107 bytes at most
        fd = os.open(directory, os.O_PATH)
        try:
            self.server.bind(f"/proc/self/fd/{fd}/gate")
        finally:
            os.close(fd)
        self.server.listen(1)
        self.connection = None
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def environment(self):
        return {"CELLAR_TEST_SYNC_GATE": self.path}

    def serve(self):
        try:
            self.connection, _ = self.server.accept()
            with self.connection.makefile("r", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    when, number, call, path = line.rstrip("\n").split(" ", 3)
                    self.visit(when, int(number), call, path)
                    self.connection.sendall(b".")
        except OSError:
            pass  # the daemon is gone, or close() was called
        except BaseException as e:  # pylint: disable=broad-except
            self.failure = e
        finally:
            if self.connection:
                self.connection.close()

    def close(self):
        """All gates open; a failure of visit() comes to light."""
        for s in (self.connection, self.server):
            if s:
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                s.close()
        self.thread.join(30)
        if self.failure:
            raise self.failure
