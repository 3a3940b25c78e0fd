"""The base of every part of a config."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """No unknown key, no guessed type, no NaN, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
