"""Tune an LSTM through a study file that names this objective; the file's search space is checked against it.

The task is the adding problem (Hochreiter and Schmidhuber, 1997): a sequence of numbers, two of them marked,
and the sum of those two as the target. Guessing the mean scores 0.167.

Run it: hpo run examples/pytorch_lstm.yaml, or python examples/pytorch_lstm.py
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor, nn

import hpo
from hpo.config import study_spec

LENGTH, TRAIN, VALID, EPOCHS = 8, 2048, 512, 5


def sequences(count: int) -> tuple[Tensor, Tensor]:
    """Return numbers and marks [count, LENGTH, 2], and the sums of the two marked numbers [count]."""
    numbers = torch.rand(count, LENGTH)
    marked = torch.rand(count, LENGTH).topk(2).indices
    marks = torch.zeros(count, LENGTH).scatter(1, marked, 1.0)
    return torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(dim=1)


class Adder(nn.Module):
    """An LSTM whose last state is read as one number."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [batch, LENGTH, 2] to [batch]."""
        states, _ = self.lstm(inputs)
        sums: Tensor = self.head(states[:, -1]).squeeze(-1)
        return sums


def objective(params: Mapping[str, Any]) -> Iterator[hpo.Evaluation]:
    """Yield the mean squared error on fresh sequences after each epoch."""
    torch.manual_seed(0)
    inputs, targets = sequences(TRAIN)
    valid_inputs, valid_targets = sequences(VALID)
    model = Adder(params["hidden_size"])
    optimizer = torch.optim.Adam(model.parameters(), lr=params["learning_rate"])
    for epoch in range(1, EPOCHS + 1):
        for rows in torch.randperm(TRAIN).split(params["batch_size"]):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), params["max_grad_norm"])
            optimizer.step()
        with torch.no_grad():
            error = nn.functional.mse_loss(model(valid_inputs), valid_targets).item()
        yield hpo.Evaluation(error, at=epoch * TRAIN, of=EPOCHS * TRAIN)


# A search space with any other name is refused before a trial runs, instead of being searched in vain.
objective.parameters = ("learning_rate", "hidden_size", "batch_size", "max_grad_norm")


def main(trials: int = 10) -> optuna.Study:
    space = study_spec.load(Path(__file__).with_suffix(".yaml")).space
    study = hpo.optimize(objective, space, direction="minimize", trials=trials)
    best = study.best_trial
    print(f"best of {len(study.trials)} trials: squared error {best.value:.4f} with {best.params}")
    return study


if __name__ == "__main__":
    main()
