"""A model that does whatever a request tells it to: VERB ARGUMENT."""

import ctypes
import os
import signal
import subprocess
import sys
import time

ready = []


def init():
    with open(os.environ["INIT_LOG"], "a") as log:
        log.write(f"{os.getpid()}\n")
    ready.append(True)


def predict(request):
    assert ready, "init did not run"
    verb, _, argument = request.partition(" ")
    return DO[verb](argument)


def echo(argument):
    return argument


def note(argument):
    """Say in a file that this request has begun."""
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(argument.split(" ")[0] + "\n")
    time.sleep(float(argument.split(" ")[1]))
    return argument


def sleep(argument):
    time.sleep(float(argument))
    return argument


def loop(_):
    child = subprocess.Popen(["sleep", "300"])
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{os.getpid()} {child.pid}\n")
    while True:
        pass


def segv(_):
    ctypes.string_at(0)


def eat(argument):
    """Take memory, touched, up to so many MiB."""
    held = []
    for _ in range(int(argument)):
        held.append(b"\1" * (1 << 20))
    return "still here"


def lines(argument):
    for number in range(int(argument)):
        print("line", number, "x" * 1000)
    return "printed"


def raises(argument):
    raise ValueError("Schlüssel ☃ fehlt: " + argument)


def raises_surrogate(_):
    raise ValueError("half \ud800 a pair")


def close_stdout(_):
    sys.stdout.close()
    return "closed"


def close_fd(argument):
    os.close(int(argument))
    return "closed"


def chdir(_):
    os.chdir("/")
    return os.getcwd()


def to_stderr(argument):
    print(argument, file=sys.stderr)
    return "said"


DO = {
    "echo": echo,
    "note": note,
    "sleep": sleep,
    "loop": loop,
    "segv": segv,
    "sigsegv": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "sigkill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda code: os._exit(int(code)),
    "sysexit": lambda _: sys.exit(3),
    "eat": eat,
    "pid": lambda _: f"{os.getpid()} {os.getppid()}",
    "cwd": lambda _: os.getcwd(),
    "chdir": chdir,
    "lines": lines,
    "fd1": lambda text: str(os.write(1, (text + "\n").encode())),
    "stderr": to_stderr,
    "close_stdout": close_stdout,
    "close_fd": close_fd,
    "big": lambda size: "ü" * int(size),
    "none": lambda _: None,
    "int": lambda _: 7,
    "bytes": lambda _: b"no",
    "surrogate": lambda _: "half \udc80 a pair",
    "raise": raises,
    "raise_surrogate": raises_surrogate,
    "interrupt": lambda _: (_ for _ in ()).throw(KeyboardInterrupt()),
}
