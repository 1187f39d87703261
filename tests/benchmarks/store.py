"""How the profile store does at scale: facts drawn at random, with vectors that lie as those of real utterances do.

    python tests/benchmarks/store.py --facts 1000000 --speakers 100000

prints one table: time and memory of building, of opening and of the first searches, which check what they use for the
first time; the time of a search of one speaker and over all (median and 99th percentile over queries, each at its best
of several rounds, as other work disturbs a machine); recall against brute force; what a fact takes on the disk; and the
best time of five to delete a speaker. Building and searching are processes of their own.

The vectors: 384 components of which the first vary most, half of the variance from one of 4,000 topics of unequal size.
Their mean cosine (0.16) and that with the 10 nearest of 10,000 (0.51) are about those of all-MiniLM-L6-v2 on EmoryNLP
(0.14 and 0.57).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from erckit.pipeline.console import progress
from erckit.pipeline.measure import peak_memory_mib
from erckit.retrieval.profiles import Fact
from erckit.retrieval.store import ProfileStore
from erckit.retrieval.store_files import write_store

DIMENSION, TOPICS, BATCH = 384, 4000, 1000
ENCODER = ("drawn", "print-of-drawn", DIMENSION)
WORDS = "so we could have said that nobody who was there ever knew what it had been about and then she left".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=100_000)
    parser.add_argument("--speakers", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=300, help="searches of each kind a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"{options.facts:,} facts of {options.speakers:,} speakers, {DIMENSION} components")
        for part in PARTS:
            command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--folder", folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            for name, value in json.loads(done.stdout).items():
                print(f"{name:34} {value:>14}", flush=True)


def build(options: Any) -> dict[str, str]:
    start = time.perf_counter()
    batches = progress(draw_facts(options.facts, options.speakers), None, f"batches of {BATCH:,} speakers")
    write_store(options.folder, *ENCODER, batches)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    for _ in draw_facts(options.facts, options.speakers):
        pass
    drawing = time.perf_counter() - start
    sizes = {path.name: path.stat().st_size / options.facts for path in sorted(options.folder.iterdir())}
    return {
        "build": f"{seconds - drawing:.1f} s",
        "build, peak memory": f"{peak_memory_mib():,.0f} MiB",
        **{f"bytes a fact, {name}": f"{size:,.1f}" for name, size in sizes.items()},
        "bytes a fact": f"{sum(sizes.values()):,.1f}",
    }


def search(options: Any) -> dict[str, str]:
    read = bytes_read()
    start = time.perf_counter()
    store = ProfileStore.load(options.folder, *ENCODER)
    opening, read = time.perf_counter() - start, bytes_read() - read
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    random, vectors = np.random.default_rng(1), draw_vectors(np.random.default_rng(2), options.queries)
    speakers = random.choice(store.speakers, options.queries).tolist()
    found = {
        "open": f"{1000 * opening:.1f} ms",
        "open, read": f"{read / 2**20:.1f} MiB of {size / 2**20:,.0f}",
        "first search of one speaker, p50": f"{percentiles(store, vectors, speakers, 3, 1)[0]:.3f} ms",
        "first search over all": f"{percentiles(store, vectors[:1], [None], 10, 1)[0]:.1f} ms",
    }
    for name, of, k in (
        ("one speaker", speakers, 3),
        ("one speaker", speakers, 10),
        ("all", [None] * len(speakers), 10),
    ):
        median, worst = percentiles(store, vectors, of, k, options.rounds)
        found |= {f"{name}, k={k}, p50": f"{median:.3f} ms", f"{name}, k={k}, p99": f"{worst:.3f} ms"}
    found["all, recall@10"] = f"{measure_recall(store, vectors, options):.4f}"
    gone = random.choice(store.speakers, 5, replace=False).tolist()
    times = [stopwatch(lambda speaker=speaker: store.delete_speaker(speaker)) for speaker in gone]
    found["delete a speaker"] = f"{1000 * min(times):.1f} ms"
    return found | {"searches, peak memory": f"{peak_memory_mib():,.0f} MiB"}


PARTS: dict[str, Callable[[Any], dict[str, str]]] = {"build": build, "search": search}


def percentiles(store: ProfileStore, vectors: np.ndarray, speakers: list[Any], k: int, rounds: int) -> list[float]:
    """Return the median and the 99th percentile over queries, each at its best of several rounds, in milliseconds."""
    pairs = list(zip(vectors, speakers, strict=True))
    times = [
        [stopwatch(lambda v=vector, s=speaker: store.search(v, k, speaker=s)) for vector, speaker in pairs]
        for _ in range(rounds)
    ]
    return np.percentile(1000 * np.min(times, axis=0), [50, 99]).tolist()


def stopwatch(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_recall(store: ProfileStore, vectors: np.ndarray, options: Any) -> float:
    """Return the share of the 10 nearest that are found; as near as the 10th nearest counts."""
    best = np.full((len(vectors), 10), -1.0, np.float32)
    for facts, drawn in draw_facts(options.facts, options.speakers):
        cosines = vectors @ drawn[[not fact.general for fact in facts]].T
        best = -np.partition(-np.concatenate([best, cosines], axis=1), 9, axis=1)[:, :10]
    found = [[cosine for _, cosine in store.search(vector, 10)] for vector in vectors]
    return float(np.mean(np.array(found) >= best.min(axis=1, keepdims=True) - 1e-5))


def draw_facts(count: int, speakers: int) -> Iterator[tuple[list[Fact], np.ndarray]]:
    """Yield facts, of a batch of speakers each time, with vectors: few speakers have many, most have few."""
    random = np.random.default_rng(0)
    weights = random.pareto(1.5, speakers) + 0.3
    each = 1 + random.multinomial(count - speakers, weights / weights.sum())
    for first in range(0, speakers, BATCH):
        facts = [
            draw_fact(random, speaker, number)
            for speaker in range(first, min(first + BATCH, speakers))
            for number in range(each[speaker])
        ]
        yield facts, draw_vectors(random, len(facts))


def draw_fact(random: np.random.Generator, speaker: int, number: int) -> Fact:
    dialogue, start = int(random.integers(1_000_000)), int(random.integers(10))
    said = " ".join(WORDS[start : start + 10])
    return Fact(
        id=f"{speaker}:example:dialogue-{dialogue}:{number}",
        speaker=speaker,
        kind="example",
        text=f"Once joyful, Speaker {speaker} said: {said}",
        general=number % 10 == 9,
        split="train",
        dialogues=(f"dialogue-{dialogue}",),
        utterances=(f"dialogue-{dialogue}-{number}",),
        query=said,
    )


def draw_vectors(random: np.random.Generator, count: int) -> np.ndarray:
    scale = np.exp(-np.arange(DIMENSION) / 180)
    scale *= 0.65 / np.linalg.norm(scale)
    topics = np.random.default_rng(3).normal(size=(TOPICS, DIMENSION)) * scale
    topics[:, 0] += 0.4
    share = 1 / np.arange(1, TOPICS + 1) ** 0.8
    chosen = topics[random.choice(TOPICS, count, p=share / share.sum())]
    vectors = chosen + random.normal(size=(count, DIMENSION)) * scale
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def bytes_read() -> int:
    """Return what this process has asked the system to read so far; what is mapped is not in it until it is used."""
    return int(Path("/proc/self/io").read_text().partition("rchar: ")[2].split()[0])


if __name__ == "__main__":
    main()
