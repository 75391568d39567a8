"""Holds a network namespace that has its loopback alone, and listens on ports of it for somebody outside.

Run as `unshare --net python loopback.py CHANNEL PORT...`. CHANNEL is the descriptor of a Unix socket, over which the
listeners are handed out; once its other end is closed, the process ends, and the namespace with the last one in it.
"""

import fcntl
import socket
import struct
import sys

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
"""netdevice(7)"""


def main(channel: int, ports: list[int]) -> None:
    with socket.socket(fileno=channel) as outside:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
        listeners = [socket.create_server(("127.0.0.1", port), backlog=128) for port in ports]
        socket.send_fds(outside, [b"."], [listener.fileno() for listener in listeners])
        for listener in listeners:
            listener.close()
        outside.recv(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(port) for port in sys.argv[2:]])
