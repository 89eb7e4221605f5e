"""A model: init() reads the coefficients once, predict() answers a request.

This starter is a straight line. Replace its body, coefficients/line.json and the
examples in model.yml with your own; keep the names init and predict. If the model needs
packages, list them in a requirements.txt beside this file.
"""

import json

_line: dict[str, float]


def init() -> None:
    """Run once, before the first request. The working directory is this folder."""
    global _line
    with open("coefficients/line.json", encoding="utf-8") as file:
        _line = json.load(file)


def predict(request: str) -> str:
    """Answer one request. An exception here is the caller's status 500, with its message."""
    return str(_line["slope"] * float(request) + _line["intercept"])
