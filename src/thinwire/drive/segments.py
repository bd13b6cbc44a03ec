"""Read from the kernel how many TCP segments this process has sent, and how many of them again."""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")
_TCP_INFO = 11
_RESENT_AT, _SENT_AT = 100, 156  # of tcpi_total_retrans and tcpi_data_segs_out, in struct tcp_info
_INFO_BYTES = 160


def segments() -> tuple[int, int]:
    """Return the segments with data that this process's open TCP connections have sent, and those
    of them that were sent again.

    (0, 0) where the system does not say.

    Example:
        >>> sent, resent = segments()
        >>> sent >= resent
        True
    """
    sent = resent = 0
    if not sys.platform.startswith("linux"):
        return sent, resent
    for name in os.listdir(_DESCRIPTORS):
        info = _info(int(name))
        if len(info) == _INFO_BYTES:
            resent += struct.unpack_from("=I", info, _RESENT_AT)[0]
            sent += struct.unpack_from("=I", info, _SENT_AT)[0]
    return sent, resent


def _info(descriptor: int) -> bytes:
    """Return the kernel's `tcp_info` of a descriptor; empty where it is no TCP connection."""
    try:
        if not os.readlink(_DESCRIPTORS / str(descriptor)).startswith("socket:"):
            return b""
        # A copy of the descriptor, so that closing it leaves the transport's own open.
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.type != socket.SOCK_STREAM or connection.family not in (
                socket.AF_INET,
                socket.AF_INET6,
            ):
                return b""
            return connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_BYTES)
    except OSError:
        # It was closed meanwhile.
        return b""
