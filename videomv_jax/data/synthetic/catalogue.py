"""All categories; importing the modules that declare them fills the table."""

from videomv_jax.data.synthetic import (  # noqa: F401
    buildings,
    furniture,
    nature,
    tools,
    vehicles,
)
from videomv_jax.data.synthetic.assembly import CATEGORIES

__all__ = ["CATEGORIES"]
