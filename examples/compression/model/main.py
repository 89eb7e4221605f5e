"""Which codec a block of a file is stored with: a decision tree in plain Python.

Request: nine numbers with commas between them, the features that ../store/features.go computes:
"size,entropy,zeros,text,high,same,pairs,repeats,far". Size is in bytes from 1 on, entropy in bits
from 0 to 8, all others are shares from 0 to 1.
Response: none, zstd-fast, zstd-best, flate or xz.
"""

import json
import math

FEATURES = ("size", "entropy", "zeros", "text", "high", "same", "pairs", "repeats", "far")
LARGEST = {"size": math.inf, "entropy": 8.0}
CODECS = ("none", "zstd-fast", "zstd-best", "flate", "xz")

_tree = None


def init() -> None:
    """Read coefficients/codec.json and put the number of each feature in the place of its name."""
    global _tree
    with open("coefficients/codec.json", encoding="utf-8") as file:
        trained = json.load(file)
    if tuple(trained["features"]) != FEATURES:
        raise ValueError(f"the coefficients are for other features: {trained['features']}")
    _tree = _numbered(trained["tree"])


def _numbered(node):
    if isinstance(node, str):
        if node not in CODECS:
            raise ValueError(f"the coefficients name an unknown codec: {node!r}")
        return node
    name, threshold, low, high = node
    return FEATURES.index(name), threshold, _numbered(low), _numbered(high)


def predict(request: str) -> str:
    """Return the name of a codec, or raise ValueError naming the bad field."""
    fields = request.split(",")
    if len(fields) != len(FEATURES):
        raise ValueError(f"expected 9 comma-separated numbers ({', '.join(FEATURES)}), got {len(fields)}")
    values = [_number(name, field) for name, field in zip(FEATURES, fields)]
    node = _tree
    while node.__class__ is tuple:
        feature, threshold, low, high = node
        node = low if values[feature] <= threshold else high
    return node


def _number(name: str, field: str) -> float:
    try:
        value = float(field)
    except ValueError:
        raise ValueError(f"{name} is not a number: {field[:40]!r}") from None
    # Not a number is in no range.
    if not 0.0 <= value <= LARGEST.get(name, 1.0) or value == math.inf:
        raise ValueError(f"{name} is out of its range: {field[:40]!r}")
    return value
