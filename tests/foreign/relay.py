"""A connection between client and gateway that outlives the gateway: what a load balancer's address is to callers."""

import contextlib
import socket
import threading


class Relay:
    """Passes bytes on to an address. While it leads nowhere, who connects waits."""

    def __init__(self, address):
        self.target, self.leads = None, threading.Event()
        self.leads_to(address)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def leads_to(self, address):
        """New connections go there from now on; nowhere, if there is no address."""
        if address is None:
            self.leads.clear()
        else:
            host, port = address.rsplit(":", 1)
            self.target = host, int(port)
            self.leads.set()

    def close(self):
        self.listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client):
        self.leads.wait()
        with contextlib.suppress(OSError):
            server = socket.create_connection(self.target)
            threading.Thread(target=pass_on, args=(server, client), daemon=True).start()
            pass_on(client, server)


def pass_on(source, sink):
    """Until one of the two ends; then both do."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relay(address):
    between = Relay(address)
    try:
        yield between
    finally:
        between.close()
