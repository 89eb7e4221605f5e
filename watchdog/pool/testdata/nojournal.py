#!/usr/bin/env python3
"""A runner without a journal, for the pool's tests: it stands in for the interpreter and runs no model.

A request is VERB ARGUMENT. "behind" answers how many bytes of further requests lie in the channel a
while after it came. "exit" ends the process, anything else is answered with its argument. Every answer
claims to have taken 1 µs, which with a journal would be an invitation to send requests ahead.
"""

import array
import fcntl
import os
import select
import signal
import struct
import sys
import termios
import time

HEADER = struct.Struct("<IBBHQQ")
FORK, KILL, HELLO, READY, FORKED, EXITED, UP, RESPONSE = 1, 2, 16, 17, 19, 20, 48, 49
MICROSECOND = 1000


def read_exactly(fd, size):
    data = b""
    while len(data) < size:
        chunk = os.read(fd, size - len(data))
        if not chunk:
            return None
        data += chunk
    return data


def send(fd, kind, ident=0, elapsed=0, payload=b""):
    os.write(fd, HEADER.pack(len(payload), kind, 0, 0, ident, elapsed) + payload)


def behind(fd):
    time.sleep(0.003)
    waiting = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, waiting)
    return str(waiting[0])


def work(channels, number, capabilities):
    os.setpgid(0, 0)
    base = os.path.join(channels, str(number))
    requests, replies = os.open(base + ".in", os.O_RDONLY), os.open(base + ".out", os.O_WRONLY)
    os.dup2(os.open(base + ".stdout", os.O_WRONLY), 1)
    os.dup2(os.open(base + ".stderr", os.O_WRONLY), 2)
    send(replies, UP, number, os.getpid(), capabilities)
    while (header := read_exactly(requests, HEADER.size)) is not None:
        length, _, _, _, ident, _ = HEADER.unpack(header)
        verb, _, argument = read_exactly(requests, length).decode().partition(" ")
        if verb == "exit":
            os._exit(int(argument))
        if verb == "behind":
            argument = behind(requests)
        send(replies, RESPONSE, ident, MICROSECOND, argument.encode())
    os._exit(0)


def main():
    _, bundle, entry, _, channels, _ = sys.argv[1:]
    control = os.open(os.path.join(channels, "control.in"), os.O_RDONLY)
    report = os.open(os.path.join(channels, "control.out"), os.O_WRONLY)
    with open(os.path.join(bundle, entry)) as model:
        batch = b"true" if "def predict_batch" in model.read() else b"false"
    capabilities = b'{"batch": ' + batch + b', "journal": false}'
    send(report, HELLO, payload=b'{"wire": 1, "runtime": "no journal"}')
    send(report, READY, payload=capabilities)
    children = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        if poll.poll(2):
            header = read_exactly(control, HEADER.size)
            if header is None:
                break
            _, kind, _, _, number, _ = HEADER.unpack(header)
            if kind == FORK:
                pid = os.fork()
                if pid == 0:
                    os.close(control)
                    os.close(report)
                    work(channels, number, capabilities)
                children[pid] = number
                send(report, FORKED, number, pid)
            for pid in [pid for pid, known in children.items() if kind == KILL and known == number]:
                os.kill(pid, signal.SIGKILL)
        while children and (gone := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(gone[1])
            send(report, EXITED, children.pop(gone[0]), code if code >= 0 else 128 - code)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


main()
