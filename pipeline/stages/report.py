"""Report: one self-contained page that tells somebody who has never seen the project what came out, and how."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ... import __version__
from ...data.files import read_json, read_json_lines, write_text
from ...retrieval.profiles import read_facts
from ..artefacts import load_dialogues, load_labels, load_speakers
from ..backbone import name_for_readers
from ..config import Config, dump_config
from ..groups import TITLES as GROUPS
from ..groups import group_utterances
from ..manifest import MANIFEST, read_manifest
from ..predictions import Prediction, read_predictions
from ..report import page
from ..report.conversations import choose_conversations, pick_evenly, shorten_labels
from ..report.plots import plot_classes, plot_reliability, plot_systems, plot_training, read_curve
from ..report.systems import BEATEN, EVEN, MODEL, WORSE, compare_systems, shade_rows, spread
from ..run import Run
from . import STAGES
from .ingest import SAMPLE

# Each with its sign, its words before the baselines, and its words where there are none.
VERDICTS = (
    (BEATEN, "✓", "It beats", "It beats none of the baselines"),
    (EVEN, "≈", "It is not distinguishable from", "It is distinguishable from every baseline"),
    (WORSE, "✗", "It is worse than", "It is worse than none of the baselines"),
)


def run(config: Config, run: Run) -> str:
    path = run.path("report", "index.html")
    text = page.render_page(collect_findings(config, run))
    write_text(path, text)
    return f"the page {path}"


def fingerprint(config: Config) -> str:
    """The page shows the whole configuration, and depends on its own templates."""
    digest = hashlib.sha256(dump_config(config).encode())
    for path in sorted(page.FOLDER.iterdir()):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def collect_findings(config: Config, run: Run) -> dict[str, Any]:
    """Return all that stands on the page, by the names that its templates use.

    With several seeds, the first one's run supplies all but the table of seeds.
    """
    runs = run.of_each_seed()
    labels = load_labels(run)
    metrics = [read_json(one.path("evaluate", "metrics.json")) for one in runs]
    predictions = read_predictions(runs[0].path("predict", "test.jsonl"), labels)
    return {
        "version": __version__,
        "config": config,
        "config_text": dump_config(config),
        "corpus": read_json(run.path("ingest", "corpus.json")),
        "corpus_folder": _find_corpus_folder(config.data.path),
        "labels": list(labels),
        "short": shorten_labels(list(labels)),
        "summary": read_json(run.path("prompts", "summary.json")),
        "facts": _count_facts(run),
        "unseen": _count_unseen(run),
        "largest_share": _largest_share(predictions),
        "unlabelled": sum(prediction.gold is None for prediction in predictions),
        "conversations": choose_conversations(predictions, config.report.conversations),
        "prompts": pick_evenly(predictions, config.report.prompts),
        "model_name": _name_model(config),
        "adapter": config.predict.adapter,
        **_measure(metrics, run.seeds),
        **_draw(metrics, None if config.predict.adapter else runs[0].path("train", "log.jsonl")),
        **_reproduce(config, run, predictions),
    }


def _measure(metrics: list[dict[str, Any]], seeds: tuple[int, ...]) -> dict[str, Any]:
    models = [compare_systems([one])[0] for one in metrics]
    test = metrics[0]["splits"]["test"]
    by_seed = [
        {"seed": seed, "test": model.test, "dev": model.dev, "oracle": model.oracle}
        for seed, model in zip(seeds, models, strict=True)
    ]
    values = {split: [getattr(model, split).value for model in models] for split in ("test", "dev")}
    return {
        "test": test,
        "result": test["systems"][MODEL],
        "shades": shade_rows(test["systems"][MODEL]["confusion"]),
        "model": models[0],
        "systems": compare_systems(metrics),
        "verdicts": VERDICTS,
        "group_titles": GROUPS,
        "seeds": by_seed,
        "spreads": {split: spread(found) for split, found in values.items()} if len(seeds) > 1 else None,
    }


def _draw(metrics: list[dict[str, Any]], log: Path | None) -> dict[str, Any]:
    model = metrics[0]["splits"]["test"]["systems"][MODEL]
    curve = read_curve([entry for _, entry in read_json_lines(log)]) if log else None
    plots = {
        "systems": plot_systems(compare_systems(metrics)),
        "classes": plot_classes(model["per_class"], model["oracle"]),
        "reliability": plot_reliability(model["calibration"]["bins"], model["oracle"]),
        "training": plot_training(curve) if curve else "",
    }
    return {"curve": curve, "plots": plots}


def _reproduce(config: Config, run: Run, predictions: list[Prediction]) -> dict[str, Any]:
    manifests = dict(_read_manifests(config, run))
    versions: dict[str, dict[str, None]] = {}  # dicts as ordered sets
    for manifest in manifests.values():
        for package, version in manifest["versions"].items():
            versions.setdefault(package, {})[version] = None
    inputs = {path: digest for manifest in manifests.values() for path, digest in manifest["inputs"].items()}
    corpus = {path.removeprefix("corpus/"): inputs[path] for path in inputs if path.startswith("corpus/")}
    return {
        "stages": [{"name": name, **manifest} for name, manifest in manifests.items()],
        "versions": versions,
        "made_with": predictions[0].made_with,
        "corpus_files": corpus,
        "adapter_hash": inputs.get("adapter/adapter_model.safetensors"),
    }


def _read_manifests(config: Config, run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each stage, with its seed where there are several, and what it recorded."""
    for name, stage in STAGES.items():
        if name == "report" or (name == "train" and config.predict.adapter):
            continue
        for seed in run.seeds if stage.seeded else run.seeds[:1]:
            folder = run.with_seed(seed).path(name)
            if (folder / MANIFEST).is_file():
                yield f"{name} (seed {seed})" if stage.seeded and len(run.seeds) > 1 else name, read_manifest(folder)


def _count_facts(run: Run) -> dict[str, Any]:
    facts = read_facts(run.path("profiles", "facts.jsonl"))
    splits = sorted({fact.split for fact in facts})
    return {"count": len(facts), "speakers": len({fact.speaker for fact in facts}), "splits": splits}


def _count_unseen(run: Run) -> dict[str, int]:
    speakers, dialogues = load_speakers(run), load_dialogues(run, "test")
    return {
        "speakers": sum(not speaker.seen for speaker in speakers),
        "of_speakers": len(speakers),
        "utterances": len(group_utterances(dialogues, speakers)["speaker"]["unseen"]),
        "of_utterances": sum(len(dialogue.utterances) for dialogue in dialogues),
    }


def _largest_share(predictions: list[Prediction]) -> float:
    """Return the share of test that one dialogue holds at most."""
    sizes = Counter(prediction.dialogue for prediction in predictions if prediction.gold is not None)
    return max(sizes.values(), default=0) / max(1, sizes.total())


def _find_corpus_folder(path: str) -> str | None:
    """Return the folder that $ERCKIT_DATA is to hold, None where the corpus is bundled or stands at a fixed place."""
    return None if path == SAMPLE or Path(path).is_absolute() else path


def _name_model(config: Config) -> str:
    return f"{name_for_readers(config.model)} with a task adapter (LoRA)"
