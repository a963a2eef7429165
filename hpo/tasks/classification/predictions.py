"""What a label can be, and what follows from it: the loss, and how logits become predictions and probabilities.

Torch is imported inside the losses only, so that reading a study file does not load it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Union

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
Smoothing = Union[float, "torch.Tensor"]


@dataclass(frozen=True)
class Kind:
    """What a row's target means to a sequence classifier.

    Attributes:
        metric: The metric of a study whose file names none.
        problem_type: The name of it in transformers, which is stored in the configuration of an exported model.
        predicted: logits [n, outputs] -> predictions, [n] or [n, outputs].
        probabilities: logits [n, outputs] -> probabilities [n, outputs] (regression: the values [n]).
        loss: (logits [n, outputs], targets, label smoothing: a float or [n], class weights: None, [outputs] or
            [n, outputs]) -> loss of each example [n]. Only `single_label` has class weights.
    """

    metric: str
    problem_type: str
    predicted: Callable[[Array], Array]
    probabilities: Callable[[Array], Array]
    loss: Callable[..., torch.Tensor]


class ClassifierOutputs:
    """Outputs of a classifier for n examples, with the targets: what follows from them, whatever an example is.

    Attributes:
        targets: [n] class indices or numbers, or [n, outputs] of 0 and 1.
        logits: [n, outputs].
    """

    targets: Array
    logits: Array

    @property
    def kind(self) -> Kind:
        """What a target means: the number of the one output that is right."""
        return KINDS["single_label"]

    @cached_property
    def predicted(self) -> Array:
        """The predictions, shaped as the targets."""
        return self.kind.predicted(self.logits)

    @cached_property
    def probabilities(self) -> Array:
        """The probabilities, [n, outputs]; for regression the values, [n]."""
        return self.kind.probabilities(self.logits)

    def __len__(self) -> int:
        """Return n."""
        return len(self.targets)

    @property
    def finite(self) -> bool:
        """Whether all logits are finite."""
        return bool(np.isfinite(self.logits).all())

    @property
    def varied(self) -> bool:
        """Whether the targets differ."""
        return not bool((self.targets == self.targets[:1]).all())

    @property
    def collapsed(self) -> bool:
        """Whether all predictions are equal although the targets differ."""
        return bool((self.predicted == self.predicted[:1]).all()) and self.varied

    @cached_property
    def losses(self) -> Array:
        """[n]: the loss of each example as in training, but without label smoothing and class weights."""
        import torch

        logits, targets = torch.as_tensor(self.logits, dtype=torch.float64), torch.as_tensor(self.targets)
        targets = targets if self.kind is KINDS["single_label"] else targets.double()
        return np.asarray(self.kind.loss(logits, targets, 0.0).numpy())

    @property
    def units(self) -> Array:
        """[n]: one for each example."""
        return np.ones(len(self))


@dataclass(frozen=True)
class LabelPredictions(ClassifierOutputs):
    """A classifier's outputs for n texts, with the targets; see `hpo.tasks.task.Predictions`.

    Attributes:
        task: Name in `KINDS`.
        targets: [n] class indices or numbers, or [n, labels] of 0 and 1.
        logits: [n, outputs].
    """

    task: str
    targets: Array
    logits: Array

    @property
    def kind(self) -> Kind:
        """What a target means."""
        return KINDS[self.task]

    def take(self, rows: Array) -> LabelPredictions:
        """Return the outputs for some rows, e.g. those of a bootstrap sample."""
        return LabelPredictions(self.task, self.targets[rows], self.logits[rows])


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _sigmoid(logits: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))  # no overflow at either end


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: Smoothing, weights: torch.Tensor | None = None
) -> torch.Tensor:
    import torch.nn.functional as F

    weights = None if weights is None else weights.to(logits.dtype)
    if isinstance(smoothing, float):
        return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="none")
    log_probabilities = F.log_softmax(logits, dim=-1)
    own = F.cross_entropy(logits, targets, reduction="none")
    if weights is not None:
        log_probabilities = weights * log_probabilities
        own = weights.gather(1, targets[:, None])[:, 0] * own
    return (1 - smoothing) * own + smoothing * -log_probabilities.mean(dim=-1)


def _binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: Smoothing, weights: None = None
) -> torch.Tensor:
    import torch.nn.functional as F

    smoothing = smoothing if isinstance(smoothing, float) else smoothing[:, None]
    softened = targets * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, softened, reduction="none").mean(dim=-1)


def _squared_error(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: Smoothing, weights: None = None
) -> torch.Tensor:
    return (logits[:, 0] - targets) ** 2  # label smoothing has no meaning for a number


KINDS: dict[str, Kind] = {
    "single_label": Kind(
        metric="accuracy",
        problem_type="single_label_classification",
        predicted=lambda logits: np.asarray(logits.argmax(axis=-1)),
        probabilities=_softmax,
        loss=_cross_entropy,
    ),
    "multi_label": Kind(
        metric="f1_micro",
        problem_type="multi_label_classification",
        predicted=lambda logits: (logits > 0).astype(np.int64),
        probabilities=_sigmoid,
        loss=_binary_cross_entropy,
    ),
    "regression": Kind(
        metric="spearman",
        problem_type="regression",
        predicted=lambda logits: np.asarray(logits[:, 0]),
        probabilities=lambda logits: np.asarray(logits[:, 0]),
        loss=_squared_error,
    ),
}
