from collections.abc import Callable
from dataclasses import replace

import pytest
from erckit.data.labels import EMORYNLP
from erckit.prompts.tasks import Task
from erckit.prompts.tokens import PieceTokenizer
from erckit.prompts.wording import read_wording

BRIEF = read_wording("brief")


@pytest.fixture(scope="module")
def task_of(tiny_tokenizer) -> Callable[..., Task]:
    """A function from a tokenizer, a wording and numbers to a task."""
    made: dict[object, PieceTokenizer] = {}

    def make(kind: str = "embedded", chat: bool = False, wording=BRIEF, **changes) -> Task:
        if (kind, chat, wording.hash) not in made:
            made[kind, chat, wording.hash] = PieceTokenizer(tiny_tokenizer(kind), EMORYNLP, wording, chat=chat)
        tokens = made[kind, chat, wording.hash]
        usual = Task(wording, tokens, EMORYNLP, "window", 6, 512, biography_tokens=64, fact_tokens=64, recent_count=3)
        return replace(usual, **changes)

    return make
