"""Train the codec model and write coefficients/codec.json.

    go run ../store measure PATH ... > blocks.csv
    pip install -r requirements-train.txt
    python train.py blocks.csv [--roots /usr/share/doc,...] [--out coefficients/codec.json]

A row of blocks.csv is a block: its features, and what each codec makes of it in bytes and seconds.
Cost of a codec for a block, in bytes: bytes + KAPPA * (compression + READS * decompression seconds).

A regression tree learns by how much each codec costs more than the cheapest one; then each leaf gets
the codec that costs least over the training blocks in it. (A tree that learns which codec is the
cheapest reaches half of the gain: most blocks are small, and it is the few large ones that count.)
How many leaves there are at most is chosen by cross-validation over directories, among SIZES, by cost.

Blocks of folds 7 to 9 (a tenth of the directories each) are held out, as `store judge` expects.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from sklearn.tree import DecisionTreeRegressor

KAPPA = 40_000.0  # bytes that a second of a core is worth; ../store/judge.go derives it
READS = 2.0  # times a block is read
FEATURES = ("size", "entropy", "zeros", "text", "high", "same", "pairs", "repeats", "far")
CODECS = ("none", "zstd-fast", "zstd-best", "flate", "xz")
TRAINING_FOLDS = range(7)
SIZES = (8, 16, 32, 64, 128)
LEAST_IN_LEAF = 10
SEED = 20261124
HERE = Path(__file__).resolve().parent


def read(path, roots):
    """Return (features [n, 9], costs in bytes [n, 5], folds [n]) of the blocks below roots, or of all."""
    features, costs, folds = [], [], []
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if roots and row["root"] not in roots:
                continue
            features.append([float(row[name]) for name in FEATURES])
            costs.append(
                [
                    float(row[f"{c}_bytes"])
                    + KAPPA * (float(row[f"{c}_compress_s"]) + READS * float(row[f"{c}_decompress_s"]))
                    for c in CODECS
                ]
            )
            folds.append(int(row["fold"]))
    return np.array(features), np.array(costs), np.array(folds)


def fit(x, costs, leaves):
    """Return (tree, codec of each leaf by node number)."""
    tree = DecisionTreeRegressor(max_leaf_nodes=leaves, min_samples_leaf=LEAST_IN_LEAF, random_state=SEED)
    tree.fit(x, costs - costs.min(axis=1, keepdims=True))
    at = tree.apply(x)
    return tree, {int(leaf): int(costs[at == leaf].sum(axis=0).argmin()) for leaf in np.unique(at)}


def choose(model, x):
    """Return the codec's number for each block."""
    tree, codecs = model
    return np.array([codecs[leaf] for leaf in tree.apply(x)])


def spent(costs, choices):
    """Return the sum of the chosen costs in bytes."""
    return costs[np.arange(len(costs)), choices].sum()


def nodes(model, node=0):
    """Return the tree as nested lists: [feature, threshold, at most, above], or the name of a codec."""
    tree, codecs = model
    inner = tree.tree_
    if inner.children_left[node] < 0:
        return CODECS[codecs[node]]
    low, high = nodes(model, inner.children_left[node]), nodes(model, inner.children_right[node])
    if low == high:  # two leaves of one codec are one
        return low
    return [FEATURES[inner.feature[node]], float(f"{inner.threshold[node]:.6g}"), low, high]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("blocks")
    arguments.add_argument("--roots", default="", help="learn from these roots only, with commas between them")
    arguments.add_argument("--out", default=HERE / "coefficients" / "codec.json", type=Path)
    arguments = arguments.parse_args()
    roots = [r for r in arguments.roots.split(",") if r]

    x, costs, folds = read(arguments.blocks, roots)
    training = np.isin(folds, TRAINING_FOLDS)
    x, costs, folds = x[training], costs[training], folds[training]

    validated = {}
    for leaves in SIZES:
        validated[leaves] = sum(
            spent(costs[folds == f], choose(fit(x[folds != f], costs[folds != f], leaves), x[folds == f]))
            for f in TRAINING_FOLDS
        )
    leaves = min(validated, key=validated.get)
    model = fit(x, costs, leaves)

    held_x, held_costs, held_folds = read(arguments.blocks, [])
    held = ~np.isin(held_folds, TRAINING_FOLDS)
    held_x, held_costs = held_x[held], held_costs[held]
    chosen = choose(model, held_x)
    best = held_costs.argmin(axis=1)
    fixed = held_costs.sum(axis=0).min()
    print(f"{len(x)} blocks to learn from, {leaves} leaves at most by cross-validation")
    print(f"held out, {len(held_x)} blocks: {np.mean(chosen == best):.3f} get the cheapest codec;")
    print(f"  cost against the best fixed codec {100 * (spent(held_costs, chosen) / fixed - 1):+.2f} %,")
    print(f"  of the cheapest choices {100 * (spent(held_costs, best) / fixed - 1):+.2f} % (asking is not charged)")

    trained = {"features": FEATURES, "kappa": KAPPA, "reads": READS, "roots": roots, "blocks": len(x)}
    trained["tree"] = nodes(model)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(trained, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
