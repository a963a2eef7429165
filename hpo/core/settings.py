"""What the keys of study files have in common: how they are validated, and the marks that a key may have."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Mark(Enum):
    """A property of a key, stated beside its type: `Annotated[int, Mark.RESUMABLE]`."""

    RESUMABLE = "may differ when a study is resumed"
    """Such a key says how much is run, where and how carefully, but not what is measured. What `device`, `fold` and
    `shards` resolve to is checked nevertheless: it is among the facts of the fingerprint."""
    FINE_TUNING = "read by the built-in objective only"
    NEWER = "absent from studies made by earlier versions"


class Settings(BaseModel):
    """Keys with their types: no others are allowed, and no value is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_serializer(mode="wrap")
    def _without_unused_options(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out newer options that are not used, so that studies of earlier versions can be resumed."""
        values: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        unused = {name for name in marked(type(self), Mark.NEWER) if getattr(self, name) == fields[name].default}
        return {name: value for name, value in values.items() if name not in unused}


def marked(model: type[BaseModel], mark: Mark) -> tuple[str, ...]:
    """Return the keys of a model that have a mark, in the order of the model."""
    return tuple(name for name, field in model.model_fields.items() if mark in field.metadata)
