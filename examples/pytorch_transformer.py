"""Tune a small Transformer written in plain PyTorch, reporting on a scale that batch sizes share.

Steps of different batch sizes do not compare, so the objective yields `hpo.Evaluation(value, at=...)` with
the examples seen: the pruner then sets a trial against what others had reached after as many.

Run it: python examples/pytorch_transformer.py
"""

from collections.abc import Iterator, Mapping
from typing import Any

import optuna
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import hpo

EPOCHS, WIDTH = 4, 32
SPACE = {
    "learning_rate": {"low": 1e-4, "high": 3e-2, "log": True},
    "batch_size": [32, 64, 128],
    "layers": [1, 2],
    "heads": [2, 4],
    "dropout": {"low": 0.0, "high": 0.3},
}


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added after (pre-norm)."""

    def __init__(self, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, length, WIDTH] to the same shape."""
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [batch, heads, length, WIDTH / heads]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(mixed))
        return x + self.dropout(self.feed(self.norms[1](x)))


class Transformer(nn.Module):
    """Reads an image as a sequence of its eight rows and tells which digit it shows."""

    def __init__(self, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(8, WIDTH))
        self.blocks = nn.Sequential(*(Block(heads, dropout) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, 8, 8] to logits [batch, 10]."""
        x = self.blocks(self.embed(images) + self.positions)
        logits: Tensor = self.head(x.mean(dim=1))
        return logits


def objective(params: Mapping[str, Any]) -> Iterator[hpo.Evaluation]:
    """Yield the validation accuracy after each epoch, and the loss beside it."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target)
    train, valid = torch.randperm(len(labels)).split([1280, len(labels) - 1280])
    model = Transformer(params["layers"], params["heads"], params["dropout"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=params["learning_rate"])
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for rows in train[torch.randperm(len(train))].split(params["batch_size"]):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            logits = model(images[valid])
        accuracy = (logits.argmax(-1) == labels[valid]).float().mean().item()
        loss = F.cross_entropy(logits, labels[valid]).item()
        yield hpo.Evaluation(accuracy, at=epoch * len(train), metrics={"loss": loss}, of=EPOCHS * len(train))


def main(trials: int = 10) -> optuna.Study:
    study = hpo.optimize(objective, SPACE, trials=trials, pruner={"name": "median", "n_startup_trials": 3})
    best = study.best_trial
    print(f"best of {len(study.trials)} trials: accuracy {best.value:.3f} with {best.params}")
    return study


if __name__ == "__main__":
    main()
