"""EarthGPT-JAX: a multimodal LLM for optical, SAR and infrared remote-sensing images, in JAX.

    import earthgpt_jax as eg

    model = eg.load("tiny")
    model.answer("scene.png", "How many ships are there?")

`import earthgpt_jax` imports neither jax nor a model; the names below are imported from `earthgpt_jax.api` when first
used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earthgpt_jax.api import Detection, DetectionResult, Dialogue, Model, load

__version__ = "0.1.0"
__all__ = ["Detection", "DetectionResult", "Dialogue", "Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("earthgpt_jax.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
