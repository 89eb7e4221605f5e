"""What every conformance case asks of a model: VERB ARGUMENT."""

import os
import subprocess
import sys
import time


def init():
    with open(os.environ["CONFORMANCE_INITS"], "a") as log:
        log.write("init\n")
    print("init was here")


def fail(argument):
    raise ValueError(argument)


def complain(argument):
    print(argument, file=sys.stderr)
    return "complained"


def say(argument):
    print(argument)
    return "said"


def nap(milliseconds):
    time.sleep(int(milliseconds) / 1000)
    return "rested"


def leave(directory):
    os.chdir(directory)
    return "gone"


VERBS = {
    "echo": lambda argument: argument,
    "repeat": lambda count: "ü" * int(count),
    "fail": fail,
    "number": lambda _: 7,
    "say": say,
    "complain": complain,
    "nap": nap,
    "exit": lambda code: os._exit(int(code)),
    "kill": lambda number: os.kill(os.getpid(), int(number)),
    "child": lambda _: str(subprocess.Popen(["sleep", "300"]).pid),
    "leave": leave,
    "where": lambda _: os.getcwd(),
}


def predict(request):
    verb, _, argument = request.partition(" ")
    return VERBS[verb](argument)
