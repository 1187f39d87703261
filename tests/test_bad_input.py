"""What users get wrong: through the command, each mistake ends with status 2 and a message with place and remedy."""

import json
import os
import shutil
from pathlib import Path

import pytest
from erckit.data.files import write_json, write_sealed
from erckit.data.labels import EMORYNLP, MELD
from erckit.pipeline.backbone import fingerprint
from erckit.pipeline.cli import main
from erckit.prompts.wording import read_wording
from erckit.retrieval.encoder import embedded_model_path


@pytest.fixture
def refuse(capsys, monkeypatch, tmp_path):
    """A function from a command to what it says on stderr; it must end with status 2 and without a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ERCKIT_DEBUG", raising=False)
    monkeypatch.delenv("ERCKIT_DATA", raising=False)

    def run(*command):
        capsys.readouterr()
        assert main([str(part) for part in command]) == 2
        message = capsys.readouterr().err
        assert message.startswith("erckit: ") and "Traceback" not in message
        return message.removeprefix("erckit: ").strip()

    return run


@pytest.fixture
def corpus(tmp_path, tiny_corpus) -> Path:
    """A corpus that may be spoiled."""
    folder = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, folder)
    return folder


@pytest.fixture
def config(tmp_path, corpus) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text("name: own\ndata:\n  path: corpus\n", encoding="utf-8")
    return path


def change_line(path: Path, number: int, change) -> None:
    """Replace a line of a JSONL file, counted from 1, by what `change` makes of its value, or by a text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = change(json.loads(lines[number - 1]))
    lines[number - 1] = changed if isinstance(changed, str) else json.dumps(changed)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# Configurations.


def test_a_configuration_that_is_not_there(refuse):
    assert refuse("run", "nowhere.yaml") == "nowhere.yaml: no such configuration file. Check the path."
    message = refuse("run", "nowhere")
    assert message.startswith("nowhere: no shipped configuration has this name; expected one of emorynlp-")
    assert message.endswith(", or a file NAME.yaml.")


def test_misspelt_keys_and_bad_values_are_told_together(refuse, config):
    config.write_text("name: own\ndata:\n  path: corpus\ntrain:\n  epoch: 3\n  batch_size: none\n", encoding="utf-8")
    assert refuse("run", config, "--set", "modle.name=x") == (
        f"{config}: the configuration has 3 problems:\n"
        "  --set modle.name=x: modle.name: unknown key, did you mean model.name?\n"
        f"  {config}:6: train.batch_size: found 'none', expected a valid integer\n"
        f"  {config}:5: train.epoch: unknown key, did you mean train.epochs?"
    )


def test_a_configuration_in_another_encoding(refuse, config):
    config.write_bytes("name: own\ndata:\n  path: Lucía\n".encode("latin-1"))
    message = refuse("run", config)
    assert message == f"{config}:3: expected UTF-8, found other bytes (invalid continuation byte). Save it so."


def test_a_wording_in_another_encoding(refuse, config, tmp_path):
    read_wording("brief").write(tmp_path / "wording")
    (tmp_path / "wording" / "question.txt").write_bytes("Und {speaker}? Fühlt".encode("latin-1"))
    message = refuse("run", config, "--set", f"prompts.template={tmp_path / 'wording'}")
    file = tmp_path / "wording" / "question.txt"
    assert message == f"{file}: expected UTF-8, found other bytes (invalid start byte). Mend the file."


def test_runs_that_are_to_lie_in_a_file(refuse, config, tmp_path):
    (tmp_path / "file").write_text("")
    assert refuse("run", config, "--runs", "file") == (
        "file/own: Not a directory. Check the path, its permissions and the space on the disk."
    )


# Corpora.


def test_a_corpus_folder_that_is_not_there(refuse, config, tmp_path, monkeypatch):
    command = ("run", config, "--set", "data.path=nowhere")
    remedy = "Name the folder that holds the corpus files (data.path), or set ERCKIT_DATA to the folder around it."
    here = tmp_path / "nowhere"
    assert refuse(*command) == f"no corpus folder 'nowhere'; looked for {here}. {remedy}"
    assert refuse("score", config, "nowhere") == f"no corpus folder 'nowhere'; looked for {here}. {remedy}"
    monkeypatch.setenv("ERCKIT_DATA", "/data")
    assert refuse(*command) == f"no corpus folder 'nowhere'; looked for {here} and /data/nowhere. {remedy}"


def test_a_folder_without_a_corpus(refuse, config, corpus):
    (corpus / "dev.jsonl").unlink()
    message = refuse("run", config)
    assert message.startswith(
        "corpus: no corpus recognised; found labels.json, test.jsonl, train.jsonl. erckit-jsonl was passed over: it "
        "lacks dev.jsonl. Expected all files of one form: emorynlp-json: emotion-detection-trn.json, "
    )


def test_a_missing_column(refuse, config, tmp_path):
    folder = tmp_path / "meld"
    folder.mkdir()
    rows = "".join(f"So be it.,Ada,{label},0,{turn}\n" for turn, label in enumerate(MELD))
    for split in ("train", "dev", "test"):
        speaker = "Who" if split == "dev" else "Speaker"
        header = f"Utterance,{speaker},Emotion,Dialogue_ID,Utterance_ID\n"
        (folder / f"{split}_sent_emo.csv").write_text(header + rows, encoding="utf-8")
    assert refuse("run", config, "--set", "data.path=meld").startswith(
        "meld/dev_sent_emo.csv:1: no column 'Speaker'; found Utterance, Who, Emotion, Dialogue_ID, Utterance_ID. "
    )


def test_an_unknown_label(refuse, config, corpus):
    def mislabel(dialogue):
        dialogue["utterances"][2]["label"] = "joyfull"
        return dialogue

    change_line(corpus / "dev.jsonl", 3, mislabel)
    assert refuse("run", config) == (
        "corpus/dev.jsonl:3: unknown label 'joyfull'; expected one of joyful, mad, peaceful, neutral, sad, powerful, "
        "scared. Did you mean 'joyful'?"
    )


@pytest.mark.parametrize("number", [1, 4, 12])
def test_broken_json_in_a_line(refuse, config, corpus, number):
    change_line(corpus / "train.jsonl", number, lambda dialogue: json.dumps(dialogue)[:-2])
    message = refuse("run", config)
    assert message.startswith(f"corpus/train.jsonl:{number}: broken JSON (")
    assert message.endswith("Each line holds one JSON object; mend or remove the line.")


def test_a_dialogue_without_utterances(refuse, config, corpus):
    change_line(corpus / "test.jsonl", 2, lambda dialogue: {"id": "silence", "utterances": []})
    assert refuse("run", config) == ("corpus/test.jsonl:2: dialogue 'silence' has no utterances. Remove it or fill it.")


def test_a_label_without_a_training_example(refuse, config, corpus):
    write_json(corpus / "labels.json", [*EMORYNLP, "bored"])
    assert refuse("run", config) == (
        "corpus: train has no example of 'bored', and what is never seen is never learned. Add examples, or remove the "
        "label from the label set (labels.json)."
    )


def test_a_dev_split_that_nobody_labelled(refuse, config, corpus):
    def unlabel(dialogue):
        return dialogue | {"utterances": [u | {"label": None} for u in dialogue["utterances"]]}

    for number in range(1, 5):
        change_line(corpus / "dev.jsonl", number, unlabel)
    assert refuse("run", config) == (
        "corpus: dev has no labelled utterance, and checkpoints and baselines are chosen on dev. Label some of it, or "
        "move labelled dialogues there from train."
    )


def test_a_test_split_that_nobody_labelled_is_told_at_once(config, corpus, tmp_path, monkeypatch, capsys):
    def unlabel(dialogue):
        return dialogue | {"utterances": [u | {"label": None} for u in dialogue["utterances"]]}

    monkeypatch.chdir(tmp_path)
    note = "  note: test has no labels: it can be predicted, not evaluated; use --to predict.\n"
    assert main(["ingest", str(config)]) == 0
    assert note not in capsys.readouterr().out
    for number in range(1, 5):
        change_line(corpus / "test.jsonl", number, unlabel)
    assert main(["ingest", str(config)]) == 0
    assert note in capsys.readouterr().out


def test_an_alias_table_that_is_not_there(refuse, config, tmp_path):
    assert refuse("run", config, "--set", "data.aliases=nope.yaml") == (
        f"{tmp_path / 'nope.yaml'}: no such table. Set data.aliases to the table, or remove it."
    )
    assert not (tmp_path / "runs").exists()


# Artefacts made for something else.


@pytest.fixture
def answer_with(begin, tiny_config, refuse, tmp_path):
    """A function from what an adapter says it was made for to the message with which `predict` refuses it."""

    def predict(**card):
        config, run = begin()
        made_for = {
            "base_model": config.model.name,
            "base_fingerprint": fingerprint(config.model),
            "labels": list(EMORYNLP),
            "wording": read_wording("brief").hash,
        }
        write_sealed(tmp_path / "adapter" / "erckit.json", made_for | card)
        message = refuse("predict", tiny_config, "--runs", run.folder.parent, "--set", "predict.adapter=adapter")
        return message.replace(config.model.name, "MODEL")

    return predict


def test_an_adapter_of_another_base_model(answer_with):
    assert answer_with(base_model="another/model", base_fingerprint="0" * 64) == (
        "adapter: the adapter was made for base_model 'another/model', whose files are others than those of 'MODEL' "
        "here. Set `model.name` to the adapter's base model, in the same form (hub name or folder), or train an "
        "adapter for this one."
    )


def test_an_adapter_of_another_label_set(answer_with):
    assert answer_with(labels=list(MELD)) == (
        f"adapter: the adapter was made for labels {list(MELD)}, expected {list(EMORYNLP)}. Labels and their order "
        "must be those of the corpus; train an adapter for this corpus."
    )


def test_an_adapter_that_is_not_there(refuse, tiny_config):
    assert refuse("run", tiny_config, "--set", "predict.adapter=nowhere") == (
        "nowhere: found no adapter there. Set predict.adapter to its folder, or remove it."
    )


def test_a_store_of_another_encoder(refuse, begin, tiny_config, tmp_path):
    """The weights in the encoder's folder changed after the store was filled."""
    encoder = tmp_path / "encoder"
    shutil.copytree(embedded_model_path(), encoder, copy_function=os.symlink)
    _, run = begin()
    options = (tiny_config, "--runs", run.folder.parent, "--set", f"profiles.encoder={encoder}")
    assert main([str(part) for part in ("profiles", *options)]) == 0

    other = json.loads((encoder / "config.json").read_text(encoding="utf-8")) | {"erckit": "other weights"}
    (encoder / "config.json").unlink()
    write_json(encoder / "config.json", other)
    assert refuse("prompts", *options) == (
        "profiles is not up to date (its wording, model or method changed), and prompts builds on it. Use `erckit run` "
        "without --from, which brings it up to date first."
    )
    assert main([str(part) for part in ("run", *options, "--to", "prompts")]) == 0
