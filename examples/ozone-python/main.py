"""Ozone in the air of New York from the day's weather: examples/ozone, in Python.

The coefficients are the file that R's training wrote, byte for byte.

Request: "solar radiation in langleys,wind in mph,highest temperature in degrees Fahrenheit".
Response: ozone in parts per billion, with one decimal.
"""

import csv
import math
from typing import NoReturn

TERMS = ("solar radiation", "wind", "temperature")

_COEFFICIENTS: tuple[float, ...] = ()


def init() -> None:
    """Read coefficients/ozone.csv: a term and its coefficient a line."""
    global _COEFFICIENTS
    with open("coefficients/ozone.csv", encoding="utf-8", newline="") as file:
        table = {row["term"]: float(row["coefficient"]) for row in csv.DictReader(file)}
    _COEFFICIENTS = tuple(table[term] for term in ("(Intercept)", "Solar.R", "Wind", "Temp"))


def predict(request: str) -> str:
    """Return the expected ozone, or raise ValueError naming the bad field."""
    try:
        solar, wind, temperature = map(float, request.split(","))
    except ValueError:
        _refuse(request)
    if not (math.isfinite(solar) and math.isfinite(wind) and math.isfinite(temperature)):
        _refuse(request)
    c0, c1, c2, c3 = _COEFFICIENTS
    return f"{math.exp(c0 + c1 * solar + c2 * wind + c3 * temperature):.1f}"


def _refuse(request: str) -> NoReturn:
    """Say which rule the request breaks. Slow, so only called when it does."""
    fields = request.split(",")
    if len(fields) != len(TERMS):
        raise ValueError(f"expected 3 comma-separated numbers ({', '.join(TERMS)}), got {len(fields)}")
    for term, field in zip(TERMS, fields):
        try:
            finite = math.isfinite(float(field))
        except ValueError:
            finite = False
        if not finite:
            raise ValueError(f"{term} is not a finite number: '{field}'")
    raise ValueError("the request could not be read")
