"""Where a page may listen, tried before a model is loaded for it."""

from __future__ import annotations

import errno
import socket

_HOSTS = "Give --host an address of this machine: 127.0.0.1 for this machine alone, 0.0.0.0 for every address it has."


def check_address(host: str, port: int) -> None:
    """Listen at this address for a moment.

    Raises:
        ValueError: it is none of this machine, or the port is taken or reserved; the message says what to do.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):  # the latter for what can be no name at all
        raise ValueError(f"There is no host {host!r}. {_HOSTS}") from None
    family, *_, address = found[0]
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the page does: a port is free at once
        try:
            listening.bind(address)
            listening.listen()
        except OSError as error:
            raise ValueError(_explained(error, host, port)) from None


def _explained(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is taken, perhaps by another page. End it, or choose another with --port."
    if error.errno == errno.EACCES:
        return f"You may not listen at port {port}. Choose one from 1024 on with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine. {_HOSTS}"
    return f"Nothing can listen at port {port} of {host}: {error.strerror}. {_HOSTS}"
