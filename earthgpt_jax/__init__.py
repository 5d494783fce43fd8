"""EarthGPT-JAX: a multimodal LLM for optical, SAR and infrared remote-sensing images, in JAX."""

__version__ = "0.1.0"
