"""Tune a scikit-learn pipeline: every pass over the data is an evaluation, after which it may be pruned.

Run it: python examples/sklearn_pipeline.py
"""

from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hpo

PASSES = 10
SPACE = {
    "components": {"low": 4, "high": 40},
    "alpha": {"low": 1e-6, "high": 1e-1, "log": True},
    "learning_rate": ["optimal", "constant", "adaptive"],
    # Only the schedules that start from a rate have one.
    "eta0": {"low": 1e-4, "high": 1.0, "log": True, "when": {"learning_rate": ["constant", "adaptive"]}},
}


def objective(params: Mapping[str, Any]) -> Iterator[float]:
    """Yield the validation accuracy of a linear classifier of handwritten digits after each pass."""
    x, y = load_digits(return_X_y=True)
    x_train, x_valid, y_train, y_valid = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    features = make_pipeline(StandardScaler(), PCA(params["components"], random_state=0))
    x_train, x_valid = features.fit_transform(x_train), features.transform(x_valid)
    model = SGDClassifier(
        alpha=params["alpha"],
        learning_rate=params["learning_rate"],
        eta0=params.get("eta0", 0.01),
        random_state=0,
    )
    for _ in range(PASSES):
        model.partial_fit(x_train, y_train, classes=range(10))
        yield model.score(x_valid, y_valid)


def main(trials: int = 20) -> optuna.Study:
    study = hpo.optimize(objective, SPACE, trials=trials, pruner={"name": "median", "n_startup_trials": 3})
    best = study.best_trial
    print(f"best of {len(study.trials)} trials: accuracy {best.value:.3f} with {best.params}")
    return study


if __name__ == "__main__":
    main()
