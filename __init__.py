"""erckit: emotion recognition in conversation with instruction-tuned LLMs that know their speakers."""

__version__ = "0.1.0"
