"""Train the digits model and write coefficients/digits.onnx.

    pip install -r requirements-train.txt
    python train.py

Data: 1,797 pictures of 8x8 pixels, the test half of UCI's "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak, 1998), as scikit-learn ships it. Three tenths,
stratified by digit, are held out; the printed accuracy is ONNX Runtime's on those, from
the file as written.
"""

from pathlib import Path

import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

SEED = 20261101
DARKEST = 16.0
DECIMALS = 6
HERE = Path(__file__).resolve().parent


def fit(x, y):
    """Return a network with one hidden layer, fitted to pixels scaled to 0..1."""
    network = MLPClassifier((128,), alpha=1e-3, max_iter=500, random_state=SEED)
    return network.fit(x / DARKEST, y)


def export(network):
    """Return the network as an ONNX model: pixels (n, 64) to probabilities (n, 10).

    The scaling is folded into the first layer. Doubles, not floats: a matrix product may
    be summed in another order when the batch has another size, and with doubles that
    stays far below the digits that an answer shows.
    """
    (w1, w2), (b1, b2) = network.coefs_, network.intercepts_
    arrays = {"w1": w1 / DARKEST, "b1": b1, "w2": w2, "b2": b2}
    nodes = [
        helper.make_node("MatMul", ["pixels", "w1"], ["m1"]),
        helper.make_node("Add", ["m1", "b1"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w2"], ["m2"]),
        helper.make_node("Add", ["m2", "b2"], ["a2"]),
        helper.make_node("Softmax", ["a2"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.DOUBLE, ["n", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, ["n", 10])],
        [numpy_helper.from_array(a.round(DECIMALS), name) for name, a in arrays.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="digits",
    )
    checker.check_model(model, full_check=True)
    return model


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, stratify=y, random_state=SEED)
    model = export(fit(x_train, y_train))
    path = HERE / "coefficients" / "digits.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"pixels": x_test})
    right = int((probabilities.argmax(axis=1) == y_test).sum())
    print(f"hold-out accuracy: {right}/{len(y_test)} = {right / len(y_test):.3f}")
    print(f"wrote {path.relative_to(HERE)}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
