"""Weights in and out: published ALBEF files, timm ViTs, Hugging Face BERTs, and our own as safetensors for other programs."""

from training.weights.portable import load_exported
from training.weights.published import Published, import_published

__all__ = ["Published", "import_published", "load_exported"]
