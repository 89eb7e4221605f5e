"""Train the iris model and write coefficients/iris.json.

    pip install -r requirements-train.txt
    python train.py

Data: Fisher's iris measurements (1936), 150 flowers, as scikit-learn ships them.
Lengths are in centimetres. A third of the flowers, stratified by species, is held
out; the printed accuracy is on those, with the coefficients exactly as written.
"""

import json
from pathlib import Path

from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SEED = 20261101
DECIMALS = 6
HERE = Path(__file__).resolve().parent


def fit(x, y):
    """Return a standardiser and a multinomial logistic regression fitted to x, y."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10.0, max_iter=1000))
    return model.fit(x, y)


def fold(model):
    """Return (weights, bias) that take centimetres, with the standardiser folded in."""
    scaler, regression = model[0], model[-1]
    weights = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weights @ scaler.mean_
    return weights.round(DECIMALS), bias.round(DECIMALS)


def main() -> None:
    data = load_iris()
    x, y = data.data, data.target
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=50, stratify=y, random_state=SEED)
    model = fit(x_train, y_train)
    weights, bias = fold(model)

    right = int(((x_test @ weights.T + bias).argmax(axis=1) == y_test).sum())
    folds = StratifiedKFold(10, shuffle=True, random_state=SEED)
    cross = cross_val_score(fit(x, y), x, y, cv=folds)
    print(f"hold-out accuracy: {right}/{len(y_test)} = {right / len(y_test):.3f}")
    print(f"10-fold accuracy:  {cross.mean():.3f} (standard deviation {cross.std():.3f})")

    trained = {
        "features": data.feature_names,
        "labels": [str(name) for name in data.target_names],
        "weights": weights.tolist(),
        "bias": bias.tolist(),
    }
    path = HERE / "coefficients" / "iris.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(trained, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(HERE)}")


if __name__ == "__main__":
    main()
