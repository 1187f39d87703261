"""The stage table: what each stage depends on. Its modules are imported only when they run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: its module, the sections of the configuration it depends on, and the artefacts it reads.

    An input is "stage/file", or "stage/" and "stage/folder/" for all that the stage wrote there. Seeded stages live
    in a folder for each seed. Stages with `parts` find their folder as it was and renew what changed; others begin in
    an empty one. The module has `run(config, run) -> str`, which returns one sentence, what it wrote; it may have
    `fingerprint(config) -> str`, a hash of what else it depends on, such as the wording.
    """

    module: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    seeded: bool = False
    parts: bool = False


STAGES: dict[str, Stage] = {
    "ingest": Stage(
        module="erckit.pipeline.stages.ingest",
        sections=("data",),
        inputs=(),  # the files of the corpus: `corpus_files(config)` of the module names them
    ),
    "profiles": Stage(
        module="erckit.pipeline.stages.profiles",
        sections=("profiles",),
        inputs=("ingest/dialogues.train.jsonl", "ingest/speakers.json", "ingest/labels.json"),
    ),
    "prompts": Stage(
        module="erckit.pipeline.stages.prompts",
        sections=("prompts", "model", "profiles"),
        inputs=("ingest/", "profiles/"),
        parts=True,
    ),
    "baselines": Stage(
        module="erckit.pipeline.stages.baselines",
        sections=("profiles",),
        inputs=("ingest/", "profiles/vectors.train.npy"),
    ),
    "train": Stage(
        module="erckit.pipeline.stages.train",
        sections=("train", "model"),
        inputs=("prompts/train.jsonl", "prompts/dev.jsonl", "prompts/wording/", "ingest/labels.json"),
        seeded=True,
    ),
    "predict": Stage(
        module="erckit.pipeline.stages.predict",
        sections=("predict", "memory", "model", "prompts", "profiles"),
        # Not the exports, which are for others.
        inputs=(
            "ingest/",
            "prompts/dev.jsonl",
            "prompts/test.jsonl",
            "prompts/wording/",
            "profiles/",
            "train/adapter/",
        ),
        seeded=True,
    ),
    "evaluate": Stage(
        module="erckit.pipeline.stages.evaluate",
        sections=("evaluate",),
        inputs=("predict/", "baselines/", "ingest/", "profiles/facts.jsonl"),
        seeded=True,
    ),
    "report": Stage(
        module="erckit.pipeline.stages.report",
        sections=("report",),
        inputs=("ingest/", "profiles/", "prompts/", "baselines/", "train/", "predict/", "evaluate/"),
    ),
}
