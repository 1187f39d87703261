"""Does the temporary memory remember? Facts planted early in a long conversation, asked after the window has passed.

    python tests/benchmarks/probe.py runs/emorynlp-minilm
    python tests/benchmarks/probe.py runs/emorynlp-minilm --seed 2 --set rate=3e-3 --set layers=1

prints one table. In every conversation three people say what they feel about a thing ("The harbour makes me joyful."),
then real utterances of dev follow, and at some distance each of the three comes back to the thing without a word of
feeling ("About the harbour again."). Recent emotions are not told, and each planted turn is out of the window, so an
answer can come from the memory alone. What counts is which of the three planted emotions is the most probable, so that
it is not enough to know which emotions there were: chance is a third. Nothing is told to the memory that it would not
see in use: it writes the emotions that it recognises.
Intervals are 95 %, by resampling conversations; the difference is paired.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from erckit import Memory, Recognizer
from erckit.data.dialogue import Dialogue, Utterance
from erckit.pipeline.artefacts import load_dialogues
from erckit.pipeline.console import quiet_libraries
from erckit.pipeline.memory.conversations import show_window
from erckit.pipeline.metrics import interval
from erckit.pipeline.run import Run
from erckit.pipeline.yaml_text import parse_value

PEOPLE = ("Ada", "Ben", "Cleo")
THINGS = (
    *("harbour", "garden", "bicycle", "violin", "kitchen", "lottery", "library", "picnic", "museum", "sailing trip"),
    *("old piano", "new flat", "wedding", "parking ticket", "birthday cake", "football match", "train", "painting"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a planted fact: where it is asked, what was felt, and what the others felt."""

    dialogue: str
    utterance: str
    emotion: str
    others: tuple[str, ...]


def main() -> None:
    options = parse()
    quiet_libraries()
    memory = Memory(**dict(map(parse_setting, options.settings)))
    recognizer = Recognizer.load(options.run, options.seed)
    recognizer.task = replace(recognizer.task, recent_count=0)
    emotions = [label for label in recognizer.task.labels if label != "neutral"]
    fillers = [u for d in load_dialogues(Run(options.run, recognizer.config.seed), "dev") for u in d.utterances]
    generator = np.random.default_rng(options.draw)
    planted = [plant(f"planted-{i}", emotions, fillers, options.distances, generator) for i in range(options.count)]
    dialogues, asked = [dialogue for dialogue, _ in planted], [one for _, asked in planted for one in asked]
    print(f"{len(dialogues)} conversations of {len(dialogues[0].utterances)} turns, percent right; chance is 33.3")
    recognizer.task, hits = show_window(recognizer.task, memory), {}
    for name, given in {"window": None, "memory": memory}.items():
        found = {(a.dialogue, a.utterance): a.probabilities for a in recognizer.predict(dialogues, given)}
        hits[name] = np.array([mark(one, found) for one in asked]).reshape(len(dialogues), -1)
    print(f"{'turns ago':>10} {'window alone':>24} {'with memory':>24} {'difference':>24}")
    for place, distance in enumerate([*map(str, options.distances), "all"]):
        columns = place if distance != "all" else slice(None)
        alone, remembering = (hits[name][:, columns].reshape(len(dialogues), -1) for name in ("window", "memory"))
        cells = [score(values) for values in (alone, remembering, remembering - alone)]
        print(f"{distance:>10} {cells[0]:>24} {cells[1]:>24} {cells[2]:>24}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a trained run")
    parser.add_argument("--seed", type=int, help="which seed's adapter of the run")
    parser.add_argument("--count", type=int, default=48, help="conversations")
    parser.add_argument("--draw", type=int, default=1, help="seed of the conversations")
    parser.add_argument("--distances", type=int, nargs=3, default=[8, 24, 72], help="turns between fact and question")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of the memory"
    )
    return parser.parse_args()


def parse_setting(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    return key, parse_value(value, text)


def plant(
    id: str, emotions: list[str], fillers: list[Utterance], distances: list[int], generator: np.random.Generator
) -> tuple[Dialogue, list[Asked]]:
    """Return a conversation with a fact of each person, and the questions: one at each distance."""
    felt, things = generator.permutation(emotions)[:3].tolist(), generator.permutation(THINGS)[:3]
    people = generator.permutation(3)
    start = generator.integers(len(fillers))
    said = [(PEOPLE[who], f"The {things[who]} makes me {felt[who]}.") for who in range(3)]
    asked, due = [], {who + distance: who for who, distance in zip(people, distances, strict=True)}
    assert len(due) == 3, "two questions would be asked at once; choose other distances"
    for turn in range(3, max(due) + 1):
        if turn in due:
            who = due[turn]
            asked.append(Asked(id, str(turn), felt[who], (*felt[:who], *felt[who + 1 :])))
            said.append((PEOPLE[who], f"About the {things[who]} again."))
        else:
            filler = fillers[(start + turn) % len(fillers)]
            said.append((filler.speakers[0], filler.text))
    utterances = (Utterance(str(turn), (speaker,), text) for turn, (speaker, text) in enumerate(said))
    return Dialogue(id, tuple(utterances)), asked


def mark(asked: Asked, found: Mapping[tuple[str, str], Mapping[str, float]]) -> float:
    """Return 100 for the right answer and 0 for a wrong one."""
    probabilities = found[asked.dialogue, asked.utterance]
    return 100.0 * all(probabilities[asked.emotion] > probabilities[other] for other in asked.others)


def score(values: np.ndarray) -> str:
    """Return the mean with its interval, conversations resampled."""
    drawn = np.random.default_rng(1).integers(len(values), size=(2000, len(values)))
    low, high = interval(values.mean(axis=1)[drawn].mean(axis=1))
    return f"{values.mean():.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
