"""The parameters of a search space: real numbers, whole numbers, choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.dataclasses import dataclass as validated

from hpo.recipe.hyperparameters import Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Scalar = bool | int | float | str
When = Mapping[str, Scalar | list[Scalar]]
"""Name of another parameter -> the value or values for which this parameter is active."""

MOST_POINTS = 100_000
"""A range or a space with more points than this is not listed point by point."""

STRICT = ConfigDict(extra="forbid", strict=True)


class Near(BaseModel):
    """Where the best value of a range is expected. Values elsewhere are drawn too.

    Attributes:
        mean: The value that is expected; in the range.
        spread: One standard deviation: in units of the parameter; on a logarithmic scale a factor, above 1.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    mean: float
    spread: float


class Weights(BaseModel):
    """How often each choice is expected to be the best one. A choice of weight 0 is drawn too.

    Attributes:
        weights: A number for each choice, in the order of `values`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    weights: list[float]


@validated(frozen=True, config=STRICT)
class Float:
    """A real number in [low, high]: with `log` on a logarithmic scale, with `step` in steps from `low`."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: When = field(default_factory=dict)
    prior: Near | None = None

    @model_validator(mode="after")
    def _check(self) -> Float:
        _check_range(self)
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, self.log, self.step)

    def points(self) -> list[float] | None:
        """Return every value; None for a continuous range and for one of more than `MOST_POINTS` steps."""
        if self.low == self.high:
            return [self.low]
        if self.step is None or (self.high - self.low) / self.step > MOST_POINTS:
            return None
        low, high, step = (Decimal(str(end)) for end in (self.low, self.high, self.step))
        count = int((high - low) // step)
        top = float(low + count * step)
        return [min(self.low + i * self.step, top) for i in range(count + 1)]  # equal to the bit to what Optuna draws

    def nearest(self, value: Value) -> Value:
        """Return a number unchanged, also outside the range, where Optuna stores it too; else `low`."""
        return float(value) if isinstance(value, int | float) else self.low

    def has(self, value: object) -> bool:
        """Return whether a value is a number in the range."""
        return _is_within(self, value)


@validated(frozen=True, config=STRICT)
class Int:
    """A whole number in [low, high]."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    when: When = field(default_factory=dict)
    prior: Near | None = None

    @model_validator(mode="after")
    def _check(self) -> Int:
        _check_range(self)
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, self.log, self.step)

    def points(self) -> Sequence[int] | None:
        """Return every value."""
        return range(self.low, self.high + 1, self.step)

    def nearest(self, value: Value) -> Value:
        """Return a number unchanged, also outside the range, where Optuna stores it too; else `low`."""
        return int(value) if isinstance(value, int | float) else self.low

    def has(self, value: object) -> bool:
        """Return whether a value is a whole number in the range."""
        return _is_within(self, value) and isinstance(value, int)


@validated(frozen=True, config=STRICT)
class Categorical:
    """One of several values."""

    values: list[Scalar | None]
    when: When = field(default_factory=dict)
    prior: Weights | None = None

    @model_validator(mode="after")
    def _check(self) -> Categorical:
        if not self.values:
            raise ValueError("needs at least one value")
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.values):
            raise ValueError(f"must have finite values, not {self.values}")
        if len(set(self.values)) < len(self.values):  # to Optuna 1, 1.0 and true are the same value
            raise ValueError(f"has a value twice: {self.values}")
        if self.prior is not None:
            _check_weights(self.prior.weights, len(self.values))
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def points(self) -> list[Scalar | None] | None:
        """Return every value."""
        return list(self.values)

    def nearest(self, value: Value) -> Value:
        """Return the value if it is a choice; else the closest number among the choices; else the first choice."""
        if value in self.values:
            return value
        numbers = [v for v in self.values if isinstance(v, int | float)]
        if isinstance(value, int | float) and numbers:
            return min(numbers, key=lambda number: abs(number - value))
        return self.values[0]

    def has(self, value: object) -> bool:
        """Return whether a value is a choice."""
        return value in self.values


Parameter = Float | Int | Categorical


def _is_within(range_: Float | Int, value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and range_.low <= value <= range_.high  # type: ignore[operator]


def _check_range(range_: Float | Int) -> None:
    if not (math.isfinite(range_.low) and math.isfinite(range_.high)):
        raise ValueError(f"low and high must be finite, not {range_.low} and {range_.high}")
    if range_.low > range_.high:
        raise ValueError(f"is empty: low {range_.low:g} is above high {range_.high:g}")
    if range_.log and range_.low <= 0:
        raise ValueError(f"with log, low must be above 0, not {range_.low:g}")
    if range_.step is not None and range_.step <= 0:
        raise ValueError(f"step must be above 0, not {range_.step:g}")
    if range_.log and range_.step not in (None, 1):
        raise ValueError("takes either log or step, not both")
    if range_.prior is not None:
        _check_near(range_, range_.prior)


def _check_near(range_: Float | Int, prior: Near) -> None:
    if not range_.low <= prior.mean <= range_.high:
        raise ValueError(f"prior: mean {prior.mean:g} is outside the range, {range_.low:g} to {range_.high:g}")
    least = 1 if range_.log else 0
    if not (math.isfinite(prior.spread) and prior.spread > least):
        what = "is a factor on a logarithmic scale, and" if range_.log else "is a standard deviation, and"
        raise ValueError(f"prior: spread {what} must be above {least}, not {prior.spread:g}")


def _check_weights(weights: list[float], choices: int) -> None:
    if len(weights) != choices:
        raise ValueError(f"prior: needs a weight for each of the {choices} values, and has {len(weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
        raise ValueError(f"prior: weights must be 0 or more, and not all 0: {weights}")
