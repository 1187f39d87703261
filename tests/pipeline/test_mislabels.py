"""Training utterances are listed by the loss that training has for them."""

import csv
import math
import re

import pytest
from erckit.data.errors import DataError
from erckit.pipeline.artefacts import load_dialogues, load_trees
from erckit.pipeline.cli import main
from erckit.pipeline.epochs import Batches, TrainingPrompts
from erckit.pipeline.mislabels import find_mislabels
from erckit.pipeline.recognizer import Recognizer
from erckit.pipeline.run import run_stages
from erckit.pipeline.scoring import answer_log_likelihoods


def test_the_highest_losses_are_those_of_training(begin, capsys):
    config, run = begin()
    run_stages(config, run, last="train")
    capsys.readouterr()
    path, found = find_mislabels(run.folder, None, 1000)

    recognizer = Recognizer.load(run.folder)
    task, batches = recognizer.task, Batches(step=8, together=0, row_tokens=2000)
    trees = list(load_trees(run, "train", task.wording))
    prompts = TrainingPrompts(
        trees,
        task.labels,
        task.tokens,
        task.wording,
        both_ways=recognizer.both_ways,
        batches=batches,
        noise=0.0,
        seed=1,
    )
    losses = []
    for row in map(prompts.row, range(len(prompts))):
        answers = [[answer] for answer in row.answers]
        scores = answer_log_likelihoods(recognizer.model, row.parts, answers, task.tokens.choices)
        losses += zip((-scores).tolist(), row.labels, strict=True)
    assert [one.loss for one in found] == pytest.approx(sorted((loss for loss, _ in losses), reverse=True), abs=1e-4)
    by_label = {label: sum(loss for loss, other in losses if other == label) for label in task.labels}
    for label, total in by_label.items():
        assert sum(one.loss for one in found if one.gold == label) == pytest.approx(total, abs=1e-3)

    said = {(d.id, u.id): u for d in load_dialogues(run, "train") for u in d.utterances}
    assert len(found) == sum(utterance.label is not None for utterance in said.values())
    for one in found:
        utterance = said[one.dialogue, one.utterance]
        assert (one.text, one.gold, one.speaker) == (utterance.text, utterance.label, utterance.speaker)
        assert one.loss == pytest.approx(-math.log(one.gold_probability)) and one.probability >= one.gold_probability
        assert (one.answer == one.gold) == (one.probability == one.gold_probability)

    assert main(["mislabels", str(run.folder), "--count", "7"]) == 0
    assert path == run.folder / "seed-1" / "mislabels.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dialogue"], row["utterance"], float(row["loss"])) for row in rows] == [
        (one.dialogue, one.utterance, one.loss) for one in found[:7]
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"7 utterances in {path}, such as" and lines[1].endswith(f"{found[0].speaker}: {found[0].text}")
    with pytest.raises(DataError, match=re.escape("neither a run (it has no config.yaml)")):
        find_mislabels(run.folder.parent, None, 7)
