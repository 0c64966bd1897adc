"""Where a machine keeps what it can fetch or make again: copies from S3, dequantised models."""

import os
from pathlib import Path

CACHE_VARIABLE = "RECIPE_RAY_CACHE"


def cache_folder() -> Path:
    """$RECIPE_RAY_CACHE, by default `recipe-ray` in the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recipe-ray"
