"""What a temporary memory is like, and how it is written."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from ..config import Section


class Memory(Section):
    """The temporary memory of a conversation."""

    content: Literal["semantics", "emotion", "both"] = Field(
        default="both", description="what is written: what was said, the emotion recognised, or both"
    )
    scope: Literal["dialogue", "speaker"] = Field(
        default="dialogue", description="what one memory is kept for; those of speakers last over all dialogues given"
    )
    window: int = Field(default=3, ge=1, description="utterances shown beside the memory, the asked one included")
    slots: int = Field(default=8, ge=1, description="conversations that advance together, each with a memory")
    layers: int = Field(default=2, ge=0, description="last layers that have temporary factors; 0: all")
    modules: Literal["all", "attention", "feed_forward"] = Field(
        default="all", description="linear modules of these layers that have them"
    )
    rank: int = Field(default=16, ge=1, description="rank of the temporary factors")
    scale: float = Field(default=1.0, gt=0, description="scale of the temporary factors: alpha divided by rank")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="how a write steps")
    rate: float = Field(default=1e-3, gt=0, le=10, description="learning rate of a write")
    damping: float = Field(default=0.0, ge=0, description="the rate of write n is divided by 1 + damping * n")
    chunk: int = Field(default=1, ge=1, description="turns that are written together; 1 with scope speaker")
    steps: int = Field(default=1, ge=1, description="optimiser steps a write")
    semantics_weight: float = Field(default=1.0, ge=0, description="weight of the loss of what was said")
    emotion_weight: float = Field(default=1.0, ge=0, description="weight of the loss of the recognised emotion")
    by_confidence: bool = Field(default=False, description="scale the loss of an emotion by its probability")
    least_surprise: float = Field(default=0.0, ge=0, description="turns whose loss is lower are not written, in nats")
    decay: float = Field(default=0.0, ge=0, lt=1, description="share that is forgotten before each write")
    largest_size: float = Field(
        default=0.1,
        gt=0,
        description="a write is undone that brings B above it, as the root mean square of its entries",
    )
    largest_rise: float = Field(
        default=0.5, ge=0, description="a write is undone that raises the loss of what it wrote by more, in nats"
    )
    oracle: bool = Field(default=False, description="write gold emotions in place of the recognised ones")

    @field_validator("chunk")
    @classmethod
    def _of_one_speaker(cls, chunk: int, info: ValidationInfo) -> int:
        if chunk > 1 and info.data.get("scope") == "speaker":
            raise ValueError("1, because memory.scope is speaker and neighbouring turns have other speakers")
        return chunk
