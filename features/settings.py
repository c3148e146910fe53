"""The base of every configuration object: unknown keys are refused, values do not change after construction."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Configuration of one part, declared in the file of the part it configures."""

    model_config = ConfigDict(extra="forbid", frozen=True)
