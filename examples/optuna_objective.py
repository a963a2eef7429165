"""Run an objective written for Optuna as it is: it suggests, reports and prunes by itself.

With no search space, `hpo.optimize` hands the trial over; what it adds is the budget in rows, seeds that a
resumed study does not repeat, and an end to a row of failures.

Run it: python examples/optuna_objective.py
"""

import optuna
from sklearn.datasets import load_wine
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import train_test_split

import hpo


def objective(trial: optuna.Trial) -> float:
    """Return the validation accuracy of boosted trees that tell wines apart."""
    x_train, x_valid, y_train, y_valid = train_test_split(*load_wine(return_X_y=True), random_state=0)
    model = GradientBoostingClassifier(
        learning_rate=trial.suggest_float("learning_rate", 1e-3, 1.0, log=True),
        max_depth=trial.suggest_int("max_depth", 1, 4),
        subsample=trial.suggest_float("subsample", 0.3, 1.0),
        warm_start=True,
        random_state=0,
    )
    accuracy = 0.0
    for trees in range(5, 26, 5):
        accuracy = model.set_params(n_estimators=trees).fit(x_train, y_train).score(x_valid, y_valid)
        trial.report(accuracy, trees)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


def main(trials: int = 15) -> optuna.Study:
    study = hpo.optimize(objective, trials=trials)
    best = study.best_trial
    print(f"best of {len(study.trials)} trials: accuracy {best.value:.3f} with {best.params}")
    return study


if __name__ == "__main__":
    main()
