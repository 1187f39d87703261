"""erckit: emotion recognition in conversation with instruction-tuned LLMs that know their speakers."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Memory", "Recognizer"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the command line answers at once, and torch takes seconds.
    if name == "Recognizer":
        from .pipeline.recognizer import Recognizer

        return Recognizer
    if name == "Memory":
        from .pipeline.config import Memory

        return Memory
    raise AttributeError(f"module 'erckit' has no attribute {name!r}")
