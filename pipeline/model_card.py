"""The model card: what a hub shows of a model, written from what the run itself recorded."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.errors import DataError
from ..data.files import hash_file, read_json
from ..retrieval.encoder import EMBEDDED
from .adapter import WEIGHTS, Found
from .artefacts import require_output
from .backbone import fingerprint_name
from .console import format_seconds
from .manifest import MANIFEST, read_manifest
from .report.systems import MODEL, Score, compare_systems, spread
from .run import Run
from .yaml_text import dump_mapping

EMBEDDED_ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"
TASK = "Emotion recognition in conversation"


def write_model_card(found: Found, name: str, card: Mapping[str, Any]) -> str:
    """Return README.md with the header that the hub reads; `card` is the erckit.json beside it.

    Numbers are those of the run where the adapter was found; an oracle's are marked, and left out of the header.
    Raises DataError where the run was evaluated with another adapter.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": "{:.2f}".format, "whole": "{:,}".format, "duration": format_seconds}
    environment.globals["score"] = _word_score
    findings = _collect(found)
    return environment.get_template("model_card.md.jinja").render(
        header=_write_header(name, card, findings),
        name=name,
        card=card,
        merged=card.get("merged", False),
        base=find_hub_name(card) or "a base model that is not on the hub",
        labels=list(found.labels),
        config=found.config,
        run=found.run,
        profiles=bool(found.config.prompts.biography_tokens or found.config.prompts.facts),
        **findings,
    )


def find_hub_name(card: Mapping[str, Any]) -> str | None:
    """Return the name on the hub of the base model that a card names, None for a folder."""
    name = card["base_model"]
    if card.get("merged") or name == EMBEDDED:
        return EMBEDDED_ON_HUB if name == EMBEDDED else name
    return name if card["base_fingerprint"] == fingerprint_name(name, card["revision"]) else None


def _write_header(name: str, card: Mapping[str, Any], findings: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    merged, systems, corpus = card.get("merged", False), findings["systems"], findings["corpus"]
    results = None
    # Leaderboards read these, and no mark survives there.
    if systems and not systems[0].oracle:
        what = {"task_type": "text-classification", "task_name": TASK}
        where = {"dataset_type": corpus["name"], "dataset_name": corpus["name"], "dataset_split": "test"}
        values = {
            ("f1", "W-F1, percent"): systems[0].test.value,
            ("f1", "macro F1, percent"): findings["result"]["macro_f1"],
            ("accuracy", "accuracy, percent"): findings["result"]["accuracy"],
        }
        results = [
            EvalResult(**what, **where, metric_type=kind, metric_name=said, metric_value=round(value, 2))
            for (kind, said), value in values.items()
        ]
    return ModelCardData(
        base_model=find_hub_name(card),
        base_model_relation="finetune" if merged else "adapter",
        library_name="transformers" if merged else "peft",
        tags=["erckit", "emotion-recognition", "emotion-recognition-in-conversation", "lora"],
        metrics=["f1", "accuracy"] if results else None,
        model_name=name if results else None,
        eval_results=results,
    ).to_yaml()


def _collect(found: Found) -> dict[str, Any]:
    run, config = found.run, found.config
    nothing = dict.fromkeys(("corpus", "differences", "systems", "result", "test", "seeds", "oracles", "trained"))
    if run is None:
        return nothing | {"versions": "", "settings": ""}
    require_output(run, "ingest", "corpus.json")
    corpus = read_json(run.path("ingest", "corpus.json"))
    made = None if config.predict.adapter else read_manifest(run.path("train"))
    metrics = _read_metrics(run, found.folder)
    systems = compare_systems([metrics]) if metrics else []
    test = metrics["splits"]["test"] if metrics else None
    return {
        "corpus": corpus,
        # Sentences about files that were not read name their paths.
        "differences": [said for said in corpus["differences"] if "passed over" not in said],
        "systems": systems,
        "oracles": any(system.oracle for system in systems),
        "test": test,
        "result": test["systems"][MODEL] if test else None,
        "seeds": _compare_seeds(run) if metrics else None,
        "trained": made,
        "versions": ", ".join(f"{name} {version}" for name, version in made["versions"].items()) if made else "",
        "settings": dump_mapping({"train": config.train.model_dump(mode="json")}),
    }


def _read_metrics(run: Run, adapter: Path) -> dict[str, Any] | None:
    """Return the metrics of a run, None where there are none; what they were made of is followed to the adapter."""
    path = run.path("evaluate", "metrics.json")
    if not path.is_file():
        return None
    evaluated, predicted = (read_manifest(run.path(stage)) for stage in ("evaluate", "predict"))
    answers = run.path("predict", "test.jsonl").relative_to(run.folder).as_posix()
    used = {digest for file, digest in predicted["inputs"].items() if file.endswith(f"adapter/{WEIGHTS}")}
    links = (
        evaluated["outputs"]["metrics.json"]["sha256"] == hash_file(path),
        evaluated["inputs"][answers] == predicted["outputs"]["test.jsonl"]["sha256"],
        used == {hash_file(adapter / WEIGHTS)},
    )
    if not all(links):
        raise DataError(
            f"{path}: measured with another adapter than {adapter}, or changed since. Use `erckit run`, which brings "
            "the numbers up to date, or name the folder of the adapter by itself: its card then has none."
        )
    return read_json(path)


def _compare_seeds(run: Run) -> dict[str, Any] | None:
    """Return how test W-F1 spreads over the seeds of a run that were made alike, None where there is one."""
    seeds = map(run.with_seed, run.find_seeds())

    def settings(one: Run) -> list[Any]:
        folders = [one.path(stage) for stage in ("train", "predict", "evaluate")]
        return [read_manifest(folder)["config"] if (folder / MANIFEST).is_file() else None for folder in folders]

    alike = [one for one in seeds if settings(one) == settings(run)]
    for one in alike:
        require_output(one, "evaluate", "metrics.json")
    tests = [read_json(one.path("evaluate", "metrics.json"))["splits"]["test"]["systems"][MODEL] for one in alike]
    scores = [test["w_f1"] for test in tests]
    if len(scores) < 2:
        return None
    return asdict(spread(scores)) | {"count": len(scores)}


def _word_score(score: Score | None) -> str:
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]" if score else ""
