"""Ended trials for the views of a running study."""

import datetime
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

PARAMS = {"learning_rate": 2.1234e-5, "name": "[red]x[/red]"}


def trial(number: int, value: float | None = 0.5, state: TrialState = TrialState.COMPLETE, **attrs: Any) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=value,
        params=dict(PARAMS),
        distributions={
            "learning_rate": FloatDistribution(1e-5, 1e-3),
            "name": CategoricalDistribution(("[red]x[/red]",)),
        },
        user_attrs=attrs,
    )
    made.number = number
    made.datetime_start = datetime.datetime(2025, 3, 1)
    made.datetime_complete = made.datetime_start + datetime.timedelta(seconds=12)
    return made
