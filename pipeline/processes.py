"""Processes that train together."""

import os


def count_processes() -> int:
    """How many train together, each started with the same command by `accelerate launch`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_helper() -> bool:
    """Whether another process keeps the run folder, and this one only shares its training."""
    return int(os.environ.get("RANK", "0")) > 0
