"""How fast prompts are made, and in how much memory: corpora of any size from a generator, all stages up to prompts.

    python tests/benchmarks/prompts.py --dialogues 10000 100000

prints one table: utterances a second, times as many as in the first row of the stage, and peak memory, all processes
of a row together. Every row runs in a process of its own; prompts made by two processes are compared with those of
one, byte for byte. A corpus has 14 utterances a dialogue on average, words as often as in the bundled corpus, and one
cast whatever its size: what is known of people grows with their number. The sentence encoder is a table of random
vectors, which costs next to nothing, so that what is measured is the rest.
"""

import argparse
import itertools
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from erckit.data.corpus import read_corpus
from erckit.data.dialogue import SPLITS
from erckit.data.files import read_json, write_json, write_json_lines
from erckit.pipeline.config import Config, load_config
from erckit.pipeline.measure import peak_memory_mib
from erckit.pipeline.run import Run, run_stages

ROWS = (("ingest", 1), ("profiles", 1), ("prompts", 1), ("prompts", 2))
TURNS = range(6, 23)  # 14 on average
CAST, CIRCLE = 200, 4  # people of a corpus, and of a dialogue at most
SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


def main() -> None:
    options = parse()
    if options.row:
        measure(*load(options), *options.row)
        return
    print(f"{'dialogues':>9} {'utterances':>10}  {'stage':8} {'processes':>9} {'utt./s':>8} {'times':>7} {'GiB':>6}")
    for count in options.dialogues:
        with tempfile.TemporaryDirectory() as folder:
            options.folder = Path(folder)
            save_encoder(options.folder / "encoder")
            utterances = sum(write_corpus(options.folder / "corpus", count).values())
            first: dict[str, float] = {}
            made: dict[str, dict[str, str]] = {}
            for stage, processes in ROWS:
                command = [sys.executable, __file__, *sys.argv[1:], "--row", stage, str(processes), "--folder", folder]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                found = read_json(options.folder / "found.json")
                speed = utterances / found["seconds"]
                base = first.setdefault(stage, speed)
                print(
                    f"{count:9,} {utterances:10,}  {stage:8} {processes:9} {speed:8.1f} {speed / base:6.2f}x "
                    f"{found['peak'] / 1024:6.2f}",
                    flush=True,
                )
                assert made.setdefault(stage, found["made"]) == found["made"], "two processes make other files than one"


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="sample", help="a configuration; its model and prompts are used")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--dialogues", type=int, nargs="+", default=[2000, 10000], help="sizes of the corpora")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def load(options: Any) -> tuple[Config, Run]:
    paths = [f"data.path={options.folder / 'corpus'}", f"profiles.encoder={options.folder / 'encoder'}"]
    return load_config(options.config, [*paths, *options.overrides]), Run(options.folder / "run", seed=1)


def measure(config: Config, run: Run, stage: str, processes: str) -> None:
    """Make one stage anew and note seconds, the peak of memory in MiB, and a hash of every file that it made."""
    # Moved away, prompts of the row before are not kept.
    if run.path(stage).exists():
        run.path(stage).rename(run.folder.parent / f"{stage}-before")
    start = time.perf_counter()
    run_stages(config.model_copy(update={"processes": int(processes)}), run, first=stage, last=stage)
    seconds = time.perf_counter() - start
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the processes that ended
    peak = peak_memory_mib() + (int(processes) * largest if int(processes) > 1 else 0)
    outputs = read_json(run.path(stage, "manifest.json"))["outputs"]
    write_json(run.folder.parent / "found.json", {"seconds": seconds, "peak": peak, "made": outputs})


def write_corpus(folder: Path, count: int) -> dict[str, int]:
    """Write a corpus of so many dialogues in erckit's form. Returns the number of utterances by split."""
    labels = read_corpus(Path(str(files("erckit.data") / "sample"))).labels
    write_json(folder / "labels.json", list(labels))
    draw = random.Random(1)
    dialogues = generate_dialogues(draw, list(labels))
    sizes = {}
    for split in SPLITS:
        sizes[split] = 0

        def lines(split: str = split) -> Iterator[dict[str, Any]]:
            for dialogue in itertools.islice(dialogues, round(SHARES[split] * count)):
                sizes[split] += len(dialogue["utterances"])
                yield dialogue

        write_json_lines(folder / f"{split}.jsonl", lines())
    return sizes


def generate_dialogues(draw: random.Random, labels: list[str]) -> Iterator[dict[str, Any]]:
    """Yield dialogues without end; everybody has moods of their own, and answers the mood before."""
    sample = read_corpus(Path(str(files("erckit.data") / "sample")))
    said = [u for dialogue in sample.dialogues["train"] for u in dialogue.utterances]
    words = [word for utterance in said for word in utterance.text.split()]
    lengths = [len(utterance.text.split()) for utterance in said]
    names = [f"{draw.choice(words).strip('.,?!').title() or 'Ada'} {place}" for place in range(CAST)]
    moods = {name: [draw.random() for _ in labels] for name in names}
    for number in itertools.count():
        circle = draw.sample(names, draw.randint(2, CIRCLE))
        utterances, before = [], ""
        for _ in range(draw.choice(TURNS)):
            speaker = draw.choice(circle)
            label = before if before and draw.random() < 0.2 else draw.choices(labels, moods[speaker])[0]
            text = " ".join(draw.choices(words, k=draw.choice(lengths)))
            utterances.append({"speaker": speaker, "text": text, "label": label})
            before = label
        yield {"id": f"talk-{number}", "utterances": utterances}


def save_encoder(folder: Path) -> None:
    """Save a sentence encoder that gives every token a random vector and a text their mean."""
    import torch
    from erckit.pipeline.backbone import load_tokenizer
    from erckit.pipeline.config import Model
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(0)
    table = StaticEmbedding(load_tokenizer(Model()).backend_tokenizer, embedding_dim=384)
    SentenceTransformer(modules=[table], device="cpu").save(str(folder))


if __name__ == "__main__":
    main()
