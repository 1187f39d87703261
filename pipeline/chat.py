"""A conversation in the terminal: type `Name: text` and watch the emotions."""

from collections.abc import Iterable, Iterator

from ..data.errors import DataError
from .conversation import Conversation
from .recognizer import Recognized

HELP = "Type `Name: text`. /forget empties the memory, /save FILE keeps the conversation; end with Ctrl-D."
SHOWN = 3


def chat(conversation: Conversation, lines: Iterable[str]) -> Iterator[str]:
    """Yield what to say to each line; a line that is no utterance changes nothing."""
    yield HELP
    for line in map(str.strip, lines):
        command, _, rest = line.partition(" ")
        speaker, colon, text = line.partition(":")
        try:
            if command == "/forget":
                conversation.forget()
                yield "  forgotten" if conversation.memory else "  there is no memory; begin with --memory to have one"
            elif command == "/save" and rest:
                conversation.save(rest)
                yield f"  saved: {rest}"
            elif colon:
                yield describe(conversation.add(speaker.strip(), text))
            elif line:
                yield f"  found no ':'. {HELP}"
        except (DataError, OSError) as error:
            yield f"  {error}"


def describe(found: Recognized) -> str:
    """Return one line: the emotion, the next most probable ones, and what became of the turn in the memory."""
    ranked = sorted(found.probabilities.items(), key=lambda pair: -pair[1])[:SHOWN]
    shares = ", ".join(f"{label} {100 * share:.0f} %" for label, share in ranked)
    memory = {None: "", True: ", written", False: ", not written"}[found.written]
    return f"  {found.label} ({shares}){', write undone' if found.undone else memory}"
