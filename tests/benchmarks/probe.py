"""Does the temporary memory remember? Facts planted in a long conversation, asked after the window has passed.

    python tests/benchmarks/probe.py runs/emorynlp-minilm
    python tests/benchmarks/probe.py runs/emorynlp-minilm --seed 2 --set rate=3e-3 --set layers=1

prints one table. In every conversation three people say what they feel about a thing ("I could cry about the harbour,
it breaks my heart."), each something else; real utterances of dev follow; then one of them comes back to the thing
without a word of feeling ("The harbour again."): each of the three in a copy of the conversation, so that no answer
disturbs another. Recent emotions are not told, and what was planted is out of the window, so that an answer can come
from the memory alone. Nothing is told to the memory that it would not see in use: it writes the emotions that it
recognises. So only feelings are planted that the model recognises where they are said by themselves: what was never
recognised cannot be remembered. With `--set oracle=true` it writes the planted ones: an upper bound. Chance is a third,
both for

- right: the planted emotion is the most probable of the three, and
- told apart: so it is once log-probabilities are centred over the three questions, which takes away what a memory does
  to all answers alike (it also holds which emotions came often).

Intervals are 95 %, by resampling conversations; differences are paired.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
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
# What people say who feel so, without naming it.
SAYINGS = {
    **dict.fromkeys(("joyful", "joy"), "I am so happy about the {}, it is wonderful!"),
    **dict.fromkeys(("mad", "anger"), "I hate the {}, what an outrage, damn it!"),
    **dict.fromkeys(("sad", "sadness"), "I could cry about the {}, it breaks my heart."),
    **dict.fromkeys(("scared", "fear"), "Oh no, the {}! Help, I am afraid of it."),
    "peaceful": "The {} is lovely, thank you, I feel at ease with it.",
    "powerful": "I am so proud of the {}, I knew we could do it.",
    "surprise": "What? The {}? Oh my God, I did not expect that!",
    "disgust": "Ew, the {} is gross, it makes me sick.",
}
MEASURES = ("right", "told apart")
RECOGNISED = 0.75  # the share of sayings


def main() -> None:
    options = parse()
    quiet_libraries()
    recognizer = Recognizer.load(options.run, options.seed)
    settings = recognizer.config.memory.model_dump() | dict(map(parse_setting, options.settings))
    memory = Memory(**settings)
    recognizer.task = show_window(replace(recognizer.task, recent_count=0), memory)
    emotions = choose_emotions(recognizer)
    fillers = [u for d in load_dialogues(Run(options.run, recognizer.config.seed), "dev") for u in d.utterances]
    what = "planted emotions are written (oracle)" if memory.oracle else "recognised emotions are written"
    print(f"{options.count} conversations a distance, percent; chance is 33.3; {what}: {', '.join(emotions)}")
    head = " ".join(f"{f'{measure}: {what}':>30}" for measure in MEASURES for what in ("alone", "memory", "difference"))
    print(f"{'turns ago':>10} {head}", flush=True)
    found: list[np.ndarray] = []
    for distance in options.distances:
        generator = np.random.default_rng([options.draw, distance])
        planted = [plant(str(place), emotions, fillers, distance, generator) for place in range(options.count)]
        # Without a memory the window is all that an answer depends on.
        seen = [([show_end(copy, memory.window) for copy in copies], felt) for copies, felt in planted]
        found.append(np.array([measure(recognizer, seen, None), measure(recognizer, planted, memory)]))
        print_row(str(distance), found[-1])
    print_row("all", np.concatenate(found, axis=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a trained run")
    parser.add_argument("--seed", type=int, help="which seed's adapter of the run")
    parser.add_argument("--count", type=int, default=64, help="conversations at each distance")
    parser.add_argument("--draw", type=int, default=1, help="seed of the conversations")
    parser.add_argument(
        "--distances", type=int, nargs="+", default=[6, 12, 24, 48], help="turns from facts to question"
    )
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of the memory"
    )
    return parser.parse_args()


def parse_setting(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    return key, parse_value(value, text)


def choose_emotions(recognizer: Recognizer) -> list[str]:
    """Return the emotions that are recognised, among those that can be planted, nearly wherever they are said."""
    labels = [label for label in recognizer.task.labels if label in SAYINGS]
    said = [(label, SAYINGS[label].format(thing)) for label in labels for thing in THINGS]
    dialogues = (Dialogue(str(place), (Utterance("0", PEOPLE[:1], text),)) for place, (_, text) in enumerate(said))
    rights: dict[str, list[bool]] = {label: [] for label in labels}
    for (label, _), found in zip(said, recognizer.predict(dialogues), strict=True):
        rights[label].append(max(labels, key=found.probabilities.__getitem__) == label)
    chosen = [label for label, right in rights.items() if np.mean(right) >= RECOGNISED]
    if len(chosen) < len(PEOPLE):
        raise SystemExit(
            f"the model recognises {', '.join(chosen) or 'none'} of {', '.join(labels)}; the probe needs 3"
        )
    return chosen


def plant(
    id: str, emotions: list[str], fillers: list[Utterance], distance: int, generator: np.random.Generator
) -> tuple[list[Dialogue], list[str]]:
    """Return copies of a conversation that end with a question about each fact, and what was felt, in order."""
    felt, things = generator.permutation(emotions)[:3].tolist(), generator.permutation(THINGS)[:3].tolist()
    start = generator.integers(len(fillers))
    between = [fillers[(start + turn) % len(fillers)] for turn in range(distance - 1)]
    said = [
        *((who, SAYINGS[label].format(thing), label) for who, thing, label in zip(PEOPLE, things, felt, strict=True)),
        *((filler.speakers[0], filler.text, None) for filler in between),
    ]
    utterances = [Utterance(str(turn), (who,), text, label) for turn, (who, text, label) in enumerate(said)]
    asked = [Utterance("asked", (who,), f"The {thing} again.") for who, thing in zip(PEOPLE, things, strict=True)]
    return [Dialogue(f"{id}-{place}", (*utterances, last)) for place, last in enumerate(asked)], felt


def show_end(dialogue: Dialogue, turns: int) -> Dialogue:
    return replace(dialogue, utterances=dialogue.utterances[-turns:])


def measure(
    recognizer: Recognizer, planted: list[tuple[list[Dialogue], list[str]]], memory: Memory | None
) -> np.ndarray:
    """Return for each conversation how many of its answers were right, and told apart: percent, shape (count, 2)."""
    answers: dict[str, Mapping[str, float]] = {}
    for found in recognizer.predict([copy for copies, _ in planted for copy in copies], memory):
        answers[found.dialogue] = found.probabilities  # in the end those of the question
    rows = []
    for copies, felt in planted:
        scores = np.log([[answers[copy.id][emotion] for emotion in felt] for copy in copies])
        centred = scores - scores.mean(axis=0)
        rows.append([100 * float((found.argmax(axis=1) == np.arange(3)).mean()) for found in (scores, centred)])
    return np.array(rows)


def print_row(name: str, found: np.ndarray) -> None:
    """Print a row from what was measured without and with the memory, shape (2, conversations, measures)."""
    alone, remembering = found
    cells = [
        describe(values[:, place])
        for place in range(len(MEASURES))
        for values in (alone, remembering, remembering - alone)
    ]
    print(f"{name:>10} {' '.join(f'{cell:>30}' for cell in cells)}", flush=True)


def describe(values: np.ndarray) -> str:
    """Return the mean with its interval, conversations resampled."""
    drawn = np.random.default_rng(1).integers(len(values), size=(2000, len(values)))
    low, high = interval(values[drawn].mean(axis=1))
    return f"{values.mean():.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
