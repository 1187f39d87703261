"""A file of a finished run that was changed by somebody else is made again or refused by its name, never used."""

import json
import re
import shutil

import pytest
from erckit.data.errors import DataError
from erckit.data.files import read_json
from erckit.pipeline.cli import main
from erckit.pipeline.manifest import MANIFEST, STARTED
from erckit.pipeline.recognizer import Recognizer
from erckit.pipeline.run import Run, Stale, state
from erckit.pipeline.stages import STAGES

from tests.tools.kill_stages import compare, describe


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(finished.folder, tmp_path / "talk")
    return Run(tmp_path / "talk", seed=1)


def damages(whole: bytes):
    """Yield the content with a byte flipped here and there, and cut short here and there."""
    for place in sorted({0, len(whole) // 3, len(whole) // 2, len(whole) - 1}):
        for bits in (1, 128, 255):
            yield whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :]
    for length in (0, len(whole) // 2, len(whole) - 1):
        yield whole[:length]


def artefacts(run, stage):
    files = [path for path in run.path(stage).rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    assert files
    return sorted(files)


def means_the_same(path, damaged: bytes, whole: bytes) -> bool:
    """Whether the two differ in blanks between the values of a manifest alone, which mean nothing."""
    try:
        return path.name == MANIFEST and json.loads(damaged) == json.loads(whole)
    except ValueError:
        return False


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_one_of_whose_files_was_changed_is_never_taken_for_fresh(finished, run, stage):
    for path in artefacts(run, stage):
        whole = path.read_bytes()
        for damaged in damages(whole):
            path.write_bytes(damaged)
            found = state(stage, finished.config, run)
            if not means_the_same(path, damaged, whole):
                name = path.relative_to(run.path(stage)).as_posix()
                expected = f"its {MANIFEST} is broken" if path.name == MANIFEST else f"output {name} was changed"
                assert found == Stale(expected), (path, damaged[:50])
        path.write_bytes(whole)


@pytest.mark.parametrize("stage", list(STAGES)[:-1])
def test_the_stages_after_it_refuse_to_work_and_say_which_file_it_is(finished, run, stage, capsys):
    for path in artefacts(run, stage):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 16]))
        assert main(["report", *finished.options, "--runs", str(run.folder.parent)]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"erckit: {stage} is not up to date (") and path.name in message, message
        assert message.endswith("Use `erckit run` without --from, which brings it up to date first.\n")
        path.write_bytes(whole)


@pytest.mark.parametrize("stage", ["ingest", "prompts", "predict", "evaluate", "report"])
def test_the_stage_is_run_again_and_makes_what_it_made_before(finished, run, stage):
    right = describe(finished.folder)
    for number, path in enumerate(artefacts(run, stage)[:: 1 if stage == "evaluate" else 9]):
        whole = path.read_bytes()
        path.write_bytes(list(damages(whole))[number])
        assert main(["run", *finished.options, "--runs", str(run.folder.parent), "--to", stage]) == 0
        assert compare(right, describe(run.folder)) in ([], ["report/manifest.json"])  # which says where the page is


def test_a_stage_that_was_interrupted_begins_anew_where_its_record_was_changed(finished, run):
    folder = run.path("evaluate")
    (folder / MANIFEST).unlink()
    for content in (b"", b"{", b"[]", b"\xff", b'{"key": "0"}', b"[" * 100_000):
        (folder / STARTED).write_bytes(content)
        (folder / "left-over.txt").write_text("of another")
        assert main(["evaluate", *finished.options, "--runs", str(run.folder.parent)]) == 0
        assert not (folder / "left-over.txt").exists()
        (folder / MANIFEST).unlink()


# Outside the stages.


@pytest.fixture
def answers_nothing(monkeypatch):
    """Loading a model is a failure of the test: what was changed is refused before."""
    monkeypatch.setattr("erckit.pipeline.recognizer.load_model", lambda config: pytest.fail("a model was loaded"))


def test_a_run_whose_files_were_changed_answers_nothing(run, answers_nothing):
    deciding = {
        "ingest": ("labels.json", "speakers.json", MANIFEST),
        "profiles": ("facts.jsonl", "index.faiss", "rows.npz", "store.json", MANIFEST),
        "prompts": ("wording", MANIFEST),
        "train": ("adapter", MANIFEST),
    }
    paths = [
        path for stage, names in deciding.items() for path in artefacts(run, stage)
        if path.relative_to(run.path(stage)).parts[0] in names
    ]  # fmt: skip
    assert len(paths) > 25
    for path in paths:
        whole = path.read_bytes()
        for damaged in damages(whole):
            if not means_the_same(path, damaged, whole):
                path.write_bytes(damaged)
                with pytest.raises(DataError, match=re.escape(path.name)) as raised:
                    Recognizer.load(run.folder)
                remedies = ("`erckit run`", "Mend", "Run the profiles stage again.")
                assert any(remedy in str(raised.value) for remedy in remedies)
        path.write_bytes(whole)


COMPARED = ["ingest/labels.json", "ingest/manifest.json", "seed-1/train/manifest.json", "seed-1/predict/test.jsonl"]
LISTED = ["ingest/dialogues.train.jsonl", "prompts/train.jsonl", "prompts/manifest.json"]
TOLD = ["ingest/corpus.json", "ingest/manifest.json", "seed-1/predict/manifest.json", "seed-1/evaluate/metrics.json"]


@pytest.mark.parametrize(
    ("command", "names"),
    [("compare", [*COMPARED, "seed-1/predict/manifest.json"]), ("mislabels", LISTED), ("merge", TOLD)],
)
def test_a_command_that_reads_a_run_refuses_what_was_changed(finished, run, tmp_path, capsys, command, names):
    more = {"compare": [str(finished.folder)], "mislabels": [], "merge": [str(tmp_path / "merged")]}[command]
    for name in names:
        path = run.folder / name
        whole = path.read_bytes()
        for digit in (b"1", b"2", b"3"):  # what reads as it did before, with another number
            path.write_bytes(whole.replace(digit, b"4", 1))
            if path.read_bytes() != whole:
                assert main([command, str(run.folder), *more]) == 2, (name, digit)
                assert path.name in capsys.readouterr().err
        path.write_bytes(whole[:-2])
        assert main([command, str(run.folder), *more]) == 2, name
        assert path.name in capsys.readouterr().err
        path.write_bytes(whole)
    assert main([command, str(run.folder), *more]) == 0


def test_a_run_whose_configuration_was_changed_answers_nothing(run, answers_nothing):
    path = run.folder / "config.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("  window: 3\n", "  window: 4\n", 1), encoding="utf-8")
    message = f"{path}: prompts.window is 4, and prompts was made with 3. Use `erckit run` with the configuration"
    with pytest.raises(DataError, match=re.escape(message)):
        Recognizer.load(run.folder)


def test_an_adapter_whose_files_were_changed_is_refused(finished, run):
    folder = run.path("train", "adapter")
    for path in [folder / name for name in ("erckit.json", "adapter_config.json", "adapter_model.safetensors")]:
        whole = path.read_bytes()
        for number, damaged in enumerate(damages(whole)):
            if number % 4 == 0 and not means_the_same(folder / MANIFEST, damaged, whole):
                path.write_bytes(damaged)
                with pytest.raises(DataError, match=re.escape(str(path))):
                    Recognizer.load(folder)
        path.write_bytes(whole)
    wording = folder / "wording" / "question.txt"
    wording.write_text("{speaker}?\n", encoding="utf-8")
    with pytest.raises(DataError, match="the adapter was made for wording"):
        Recognizer.load(folder)


def test_pickled_weights_beside_an_adapter_are_never_read(finished, run, monkeypatch):
    folder = run.path("train", "adapter")
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setattr("torch.load", lambda *arguments, **options: pytest.fail("something was unpickled"))
    Recognizer.load(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match=re.escape(f"{folder / 'adapter_model.safetensors'}: missing. Copy")):
        Recognizer.load(folder)


def test_a_conversation_whose_file_was_changed_is_refused(finished, tmp_path):
    recognizer = Recognizer.load(finished.folder)
    conversation = recognizer.conversation(recognizer.config.memory)
    for text in ("Who left the hatch open?", "Not me."):
        conversation.add("Ada", text)
    path = tmp_path / "talk.safetensors"
    conversation.save(path)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for place in [*range(0, 8 + header, 7), *range(8 + header, len(whole), len(whole) // 40)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            resumed = recognizer.resume(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
        else:  # a blank that pads the header, nothing more
            assert not whole[place : place + 1].strip() and resumed._felt == conversation._felt
    for length in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=re.escape(f"{path}: ")):
            recognizer.resume(path)


# Code that comes with a model.

EVIL = "import pathlib\npathlib.Path({marker!r}).write_text('run')\nclass Model:\n    pass\n"


@pytest.fixture
def brings_code(tiny_model, tmp_path):
    """The folder of a model with code of its own, and the file that the code makes where it is run."""
    folder, marker = tmp_path / "model", tmp_path / "code was run"
    shutil.copytree(tiny_model("qwen2"), folder)
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)), encoding="utf-8")
    classes = {"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Model", None]}
    for name in ("config.json", "tokenizer_config.json"):
        content = read_json(folder / name) | {"auto_map": classes, "model_type": "evil", "tokenizer_class": "Evil"}
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder, marker


def test_code_that_comes_with_a_model_is_not_run(finished, brings_code, tmp_path, capsys):
    folder, marker = brings_code
    shutil.copytree(finished.folder, tmp_path / "runs" / "talk")
    options = [*finished.options, "--set", f"model.name={folder}", "--runs", str(tmp_path / "runs")]
    assert main(["run", *options]) == 2
    assert capsys.readouterr().err == (
        f"erckit: model {str(folder)!r} brings code of its own, which was not run. Where you trust that code, set "
        "`model.trust_remote_code: true`; it is run with all that you may do on this machine.\n"
    )
    assert not marker.exists()


def test_a_run_from_elsewhere_cannot_ask_for_code_to_be_run(run, answers_nothing):
    path = run.folder / "config.yaml"
    text = path.read_text(encoding="utf-8").replace("trust_remote_code: false", "trust_remote_code: true")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"{path}: its model brings code of its own (model.trust_remote_")):
        Recognizer.load(run.folder)
    assert main(["chat", str(run.folder)]) == 2
    with pytest.raises(DataError, match="model.trust_remote_code is True, and prompts was made with False"):
        Recognizer.load(run.folder, trust_remote_code=True)
