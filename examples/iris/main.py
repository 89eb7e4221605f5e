"""Iris species from four lengths: a softmax regression in pure Python.

Request: "sepal length,sepal width,petal length,petal width" in centimetres.
Response: setosa, versicolor or virginica.
"""

import json
import math
from typing import NoReturn

FEATURES = ("sepal length", "sepal width", "petal length", "petal width")

_LABELS: tuple[str, ...] = ()
_WEIGHTS: tuple[float, ...] = ()


def init() -> None:
    """Read coefficients/iris.json and keep what predict needs as flat tuples.

    Softmax does not change when the same number is added to every score, so the
    first class is made the zero: its weights are subtracted from the others here,
    once, and predict has two scores to compute instead of three.
    """
    global _LABELS, _WEIGHTS
    with open("coefficients/iris.json", encoding="utf-8") as file:
        trained = json.load(file)
    base, *others = [[b, *w] for b, w in zip(trained["bias"], trained["weights"])]
    _LABELS = tuple(trained["labels"])
    _WEIGHTS = tuple(w - zero for row in others for w, zero in zip(row, base))


def predict(request: str) -> str:
    """Return the most probable species, or raise ValueError naming the bad field."""
    try:
        a, b, c, d = map(float, request.split(","))
    except ValueError:
        _refuse(request)
    v0, va, vb, vc, vd, w0, wa, wb, wc, wd = _WEIGHTS
    versicolor = v0 + va * a + vb * b + vc * c + vd * d
    virginica = w0 + wa * a + wb * b + wc * c + wd * d
    # One test for all four fields: an infinity or a NaN in any of them makes this NaN.
    if (versicolor + virginica) * 0.0 != 0.0:
        _refuse(request)
    if virginica > versicolor:
        return _LABELS[2] if virginica > 0.0 else _LABELS[0]
    return _LABELS[1] if versicolor > 0.0 else _LABELS[0]


def _refuse(request: str) -> NoReturn:
    """Say which rule the request breaks. Slow, so only called when it does."""
    fields = request.split(",")
    if len(fields) != len(FEATURES):
        raise ValueError(
            f"expected 4 comma-separated numbers ({', '.join(FEATURES)}), "
            f"got {len(fields)} field{'s' if len(fields) != 1 else ''}"
        )
    for name, field in zip(FEATURES, fields):
        shown = field if len(field) <= 40 else field[:40] + "..."
        try:
            value = float(field)
        except ValueError:
            raise ValueError(f"{name} is not a number: {shown!r}") from None
        if not math.isfinite(value):
            raise ValueError(f"{name} is not a finite number: {shown!r}")
    raise ValueError("the numbers are too large to score")
