"""Pixels in, a photo-z catalogue out: find, separate and measure every galaxy of a multi-band mosaic.

The public API, imported when first used (so that ``import deepdisc`` does not wait for torch)::

    from deepdisc import Mosaic, evaluate, instantiate, load, load_model, predict
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "InputError": "deepdisc.errors",
    "Mosaic": "deepdisc.data.mosaic",
    "compare": "deepdisc.evaluation",
    "crossmatch": "deepdisc.evaluation",
    "evaluate": "deepdisc.evaluation",
    "instantiate": "deepdisc.config",
    "load": "deepdisc.config",
    "load_model": "deepdisc.model_zoo",
    "predict": "deepdisc.inference.predict",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'deepdisc' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
