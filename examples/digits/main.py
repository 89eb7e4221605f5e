"""Handwritten digits: a neural network in ONNX format, run by ONNX Runtime.

Request: 64 numbers from 0 (paper) to 16 (ink), an 8x8 picture row by row, separated
by commas or as a JSON array.
Response: JSON, {"digit": 3, "probability": 0.9801}.
"""

import json

import numpy
import onnxruntime

PIXELS = 64
DARKEST = 16

_session: onnxruntime.InferenceSession


def init() -> None:
    """Load coefficients/digits.onnx.

    Workers are forks of this process and threads do not survive a fork, so the session
    gets no thread pool: a pool started here would have no threads in any worker. Each
    worker computes on its one thread; the workers are the parallelism.
    """
    global _session
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    _session = onnxruntime.InferenceSession("coefficients/digits.onnx", options, providers=["CPUExecutionProvider"])


def predict(request: str) -> str:
    """Return the digit and its probability, or raise ValueError naming the bad pixel."""
    return predict_batch([request])[0]


def predict_batch(requests: list[str]) -> list[str]:
    """Answer many requests with one run of the network: same length, same order.

    One bad request raises for all; the caller finds it with predict, one by one.
    """
    pictures = numpy.array([_pixels(request) for request in requests], dtype=numpy.float64)
    pictures = pictures.reshape(len(requests), PIXELS)
    (probabilities,) = _session.run(["probabilities"], {"pixels": pictures})
    digits = probabilities.argmax(axis=1).tolist()
    tops = probabilities.max(axis=1).tolist()
    return [f'{{"digit": {digit}, "probability": {round(top, 4)}}}' for digit, top in zip(digits, tops)]


def _pixels(request: str) -> list[float]:
    if request.lstrip()[:1] == "[":
        try:
            fields = json.loads(request)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a JSON array: {error}") from None
    else:
        fields = request.split(",")
    if len(fields) != PIXELS:
        raise ValueError(f"expected {PIXELS} pixels, got {len(fields)} field{'s' if len(fields) != 1 else ''}")
    try:
        values = list(map(float, fields))
    except (ValueError, TypeError, OverflowError):
        values = []
    # Written so that a NaN fails it too.
    if not values or not all(0 <= value <= DARKEST for value in values):
        _refuse(fields)
    return values


def _refuse(fields: list) -> None:
    """Name the first field that is not a pixel. Slow, so only called when there is one."""
    for number, field in enumerate(fields, start=1):
        shown = repr(field)
        shown = shown if len(shown) <= 40 else shown[:40] + "..."
        try:
            value = float(field)
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"pixel {number} is not a number: {shown}") from None
        if not 0 <= value <= DARKEST:
            raise ValueError(f"pixel {number} is not between 0 and {DARKEST}: {shown}")
