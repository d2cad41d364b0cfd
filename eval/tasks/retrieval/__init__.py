"""Zero-shot image-text retrieval from a Karpathy file: rank everything by ITC, re-rank the best by ITM."""

from eval.tasks.retrieval.task import Retrieval

__all__ = ["Retrieval"]
