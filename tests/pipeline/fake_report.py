"""What the pages are made from, with chosen numbers, and a page as a reader finds it."""

from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from erckit.data.files import hash_file, write_json, write_json_lines, write_sealed
from erckit.pipeline.config import Config
from erckit.pipeline.predictions import ASKED, Prediction, write_predictions
from erckit.pipeline.run import Run

LABELS = ("glad", "calm", "gloomy")
SPLITS = ("train", "dev", "test")
RESAMPLES = 12
BASELINES = {"majority": 12.34, "tfidf": -0.5, "encoder": -7.5}  # the model's lead over each, its interval ± 1


class Page(HTMLParser):
    """A page as a reader finds it: text by element, all elements with their attributes, and whether tags match."""

    VOID = {"meta", "link", "br", "hr", "img", "input"}

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.open)
        self.texts.append((tuple(self.open), " " if tag in ("td", "th") else ""))

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))

    def inside(self, tag: str) -> str:
        return "".join(data for place, data in self.texts if tag in place)

    @property
    def text(self) -> str:
        """All that is read, each run of blanks as one."""
        return " ".join("".join(data for place, data in self.texts if not {"style", "script"} & set(place)).split())


def label_of(page: Page, start: str) -> str:
    return next(a["aria-label"] for _, a in page.tags if (a.get("aria-label") or "").startswith(start))


def system(score: float, lead: float | None = None, *, oracle: bool = False) -> dict[str, Any]:
    scores = {"precision": score + 1.25, "recall": score - 1.75, "f1": score, "support": 1234}
    made = {"w_f1": score, "w_f1_interval": [score - 2.5, score + 3.25], "macro_f1": 21.43, "accuracy": 43.21}
    made |= {"oracle": oracle, "per_class": dict.fromkeys(LABELS, scores)}
    made |= {"confusion": [[101, 7, 0], [8, 102, 9], [0, 0, 0]]}
    group = {"utterances": 2345, "accuracy": 37.89, "accuracy_interval": [36.78, 38.97]}
    group |= {"w_f1": 28.91, "w_f1_interval": [27.65, 29.86]}
    made |= {"groups": {"speaker": {}, "emotion": {"shift": group}, "turn": {"2 to 5": group}}}
    bins = [
        {"from": 33.33, "utterances": 765, "confidence": 38.0, "accuracy": 22.0, "accuracy_interval": [20.0, 25.0]},
        {"from": 93.33, "utterances": 1, "confidence": 99.0, "accuracy": 100.0, "accuracy_interval": [100.0, 100.0]},
    ]
    made["calibration"] = {"ece": 15.43, "ece_interval": [14.32, 17.65], "bins": bins}
    made["calibration"] |= {"brier": 0.7654, "brier_interval": [0.6543, 0.8765]}
    return made if lead is None else made | {"model_minus_this": {"w_f1": lead, "interval": [lead - 1, lead + 1]}}


def metrics(score: float = 55.55, leads: dict[str, float] = BASELINES, **oracles: bool) -> dict[str, Any]:
    """metrics.json with chosen numbers; dev is 3 points better than test."""

    def split(score: float) -> dict[str, Any]:
        systems = {"model": system(score, oracle=oracles.get("model", False))}
        systems |= {name: system(score - lead, lead, oracle=name == "gold history") for name, lead in leads.items()}
        return {"dialogues": 4321, "utterances": 8765, "systems": systems}

    return {"labels": list(LABELS), "splits": {"dev": split(score + 3), "test": split(score)}}


def say(dialogue: str, turn: int, text: str, label: str, gold: str | None, **more: Any) -> Prediction:
    probabilities = {name: 0.62 if name == label else 0.19 for name in LABELS}
    speaker = ("Ada", "Ben")[turn % 2]
    asked = f"What does {speaker} feel?\n\n{text}\n"
    values = {"prompt": asked, "made_with": {"dtype": "float32", "batch_size": 4}} | more
    return Prediction(dialogue, f"{dialogue}-{turn}", turn, speaker, text, gold, label, probabilities, **values)


def talk(dialogue: str, turns: int = 3, *, wrong: int = 1, **more: Any) -> list[Prediction]:
    return [
        say(dialogue, t, f"Line {t} of {dialogue}.", "glad", "calm" if t < wrong else "glad", **more)
        for t in range(turns)
    ]


def make_run(folder: Path, answers: list[Prediction], by_seed: dict[int, dict[str, Any]], config: Config) -> Run:
    """Write all that the report reads, in the form of the stages before it."""
    run = Run(folder, next(iter(by_seed)), tuple(by_seed))
    counts = {split: {"dialogues": 2, "utterances": 6} for split in SPLITS}
    corpus = {"name": "talk", "form": "erckit-jsonl", "counts": counts, "repairs": {"typographic quotes": 17}}
    write_json(run.path("ingest", "corpus.json"), corpus | {"differences": ["One dialogue fewer than published."]})
    write_json(run.path("ingest", "labels.json"), list(LABELS))
    people = [
        {"id": 1, "name": "Ada", "aliases": [], "seen": True},
        {"id": 2, "name": "Ben", "aliases": [], "seen": False},
    ]
    write_json(run.path("ingest", "speakers.json"), people)
    says = [{"id": p.utterance, "speaker": p.speaker, "text": p.text, "label": p.gold} for p in answers]
    write_json_lines(run.path("ingest", "dialogues.test.jsonl"), [{"id": "all", "utterances": says}])
    tokens = {key: {split: 99 for split in SPLITS} for key in ("prompts", "mean_tokens", "longest_tokens")}
    write_json(run.path("prompts", "summary.json"), tokens | {"losses": {"prompts without their oldest turns": 23}})
    fact = {"id": "f1", "speaker": 1, "kind": "base_rate", "text": "Ada is mostly glad.", "general": True}
    fact |= {"split": "train", "dialogues": ["t1"], "utterances": ["t1-0"], "query": ""}
    write_json_lines(run.path("profiles", "facts.jsonl"), [fact])
    for seed, values in by_seed.items():
        one = run.with_seed(seed)
        write_json(one.path("evaluate", "metrics.json"), values)
        for split in ASKED:
            write_predictions(one.path("predict", f"{split}.jsonl"), answers)
        if not config.predict.adapter:
            write_json_lines(one.path("train", "log.jsonl"), LOG)
    versions = {"versions": {"python": "3.11.7"}, "inputs": {"corpus/test.jsonl": "0123abcd"}, "seconds": 75.0}
    write_sealed(
        run.path("ingest", "manifest.json"), versions | {"peak_memory_mib": 512.0, "summary": "talk, 6 utterances"}
    )
    return run


LOG = [
    {"loss": 1.5, "epoch": 0.5, "step": 10},
    {"eval_w_f1": 20.0, "epoch": 1.0, "step": 20},
    {"eval_w_f1": 31.25, "epoch": 2.0, "step": 40},
    {"eval_w_f1": 31.25, "epoch": 3.0, "step": 60},
    {"train_runtime": 5.0, "epoch": 3.0, "step": 60},
]


def draw_answers(
    generator: np.random.Generator, dialogues: int = 6, turns: int = 4, labels: tuple[str, ...] = LABELS
) -> list[Prediction]:
    """Random answers to the same dialogues, whose last utterance nobody labelled."""
    answers = []
    for place, turn in product(range(dialogues), range(turns)):
        shares = generator.dirichlet([1, 1, 1])
        gold = None if (place, turn) == (dialogues - 1, turns - 1) else labels[(place * 7 + turn * turn) % 3]
        probabilities = dict(zip(labels, shares.tolist(), strict=True))
        label = max(labels, key=lambda name: probabilities[name])
        answers.append(Prediction(f"d{place}", f"{turn}", turn, "Ada", f"So {turn}.", gold, label, probabilities))
    return answers


def write_run(folder: Path, *by_seed: list[Prediction], labels: tuple[str, ...] = LABELS, split: str = "test") -> Path:
    """Write what `compare` reads of a run with the seeds 1, 2 and so on."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"name: a\nseed: 1\ndata: {{path: a}}\nevaluate: {{resamples: {RESAMPLES}}}\n")
    write_json(folder / "ingest" / "labels.json", labels)
    write_manifest(folder / "ingest", "labels.json")
    for seed, answers in enumerate(by_seed, start=1):
        home = folder / f"seed-{seed}" / "predict"
        write_predictions(home / f"{split}.jsonl", answers)
        record = {"erckit": "1", "config": {"predict": {"memory": False}}, "fingerprint": "f"}
        inputs = {"ingest/a": "1", f"seed-{seed}/train/b": str(seed)}
        write_manifest(home, f"{split}.jsonl", **record, inputs=inputs)
    return folder


def write_manifest(folder: Path, output: str, **record: object) -> None:
    outputs = {output: {"sha256": hash_file(folder / output)}}
    write_sealed(folder / "manifest.json", record | {"outputs": outputs})
