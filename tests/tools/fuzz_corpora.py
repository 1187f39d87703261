"""Damage small corpora at random, in every form, and read them: each is read rightly, or refused with its place.

    python -m tests.tools.fuzz_corpora --count 10000

Read rightly means: every line that the damage left as it was gives just the utterances that it gave before, and those
of a dialogue whose lines are all there, one after the other, are still in one dialogue, in order. Whatever else is read
comes from the damaged lines: at most one utterance each, or the utterances of a dialogue where the line is one. Other
changes nobody can see in a file, such as another letter in a word, a last line that is missing, or the names of two
columns exchanged.

Refused means: a DataError that begins with the damaged file and a line of it. Without a line are told: a file that is
missing, that has no dialogues or no mark of its form, a label set in another form, and training data that lack a label.

Of DailyDialog and IEMOCAP, which tell what is said and what is felt in two files, the refusal may name a line of the
other one, and of what is read it is looked at that no other split, or no other dialogue, has changed.
"""

import argparse
import contextlib
import re
import shutil
import sys
import tempfile
import traceback
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from erckit.data.corpus import read_corpus
from erckit.data.dailydialog import FOLDERS
from erckit.data.dialogue import SPLITS, Corpus
from erckit.data.errors import DataError
from erckit.pipeline.console import progress

from tests.tools.corpus_forms import FORMS, PAIRED, Line, make_corpus
from tests.tools.damage import damage

WITHOUT_LINE = ("no such file", "no dialogues", "is missing", "no corpus recognised", "labels", "has no example of")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a damaged corpus: `kind` is "the same", "other" or "refused", and `wrong` what is not right."""

    form: str
    kind: str
    wrong: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="how many corpora are damaged")
    parser.add_argument("--seed", type=int, default=1, help="of the damage")
    parser.add_argument("--case", type=int, metavar="N", help="only this one, whose files are left in case-N")
    options = parser.parse_args()
    cases = range(options.count) if options.case is None else [options.case]
    sys.stdout.reconfigure(errors="backslashreplace")  # half an emoji, which a message may hold
    counts: Counter[tuple[str, str]] = Counter()
    failures = 0
    with contextlib.ExitStack() as stack:
        folder = Path(f"case-{options.case}")
        if options.case is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "corpus"
        for case, outcome in zip(cases, try_cases(cases, options.seed, folder), strict=True):
            counts[outcome.form, outcome.kind] += 1
            if outcome.wrong:
                failures += 1
                print(f"case {case} ({outcome.form}): {outcome.wrong}", flush=True)
    for form in (*FORMS, *PAIRED):
        found = {kind: count for (name, kind), count in sorted(counts.items()) if name == form}
        print(f"{form}: " + ", ".join(f"{count:,} {kind}" for kind, count in found.items()))
    print(f"{len(cases):,} damaged corpora, {failures:,} neither read rightly nor refused with their place")
    return 1 if failures else 0


def try_cases(cases: Sequence[int], seed: int, folder: Path) -> Iterator[Outcome]:
    """Yield the outcome of each case; its files lie in `folder` until the next one."""
    for case in progress(cases, len(cases), "damaged corpora"):
        random = Random(f"{seed} {case}")
        yield try_case(random, random.choice([*FORMS, *PAIRED]), folder)


def try_case(random: Random, form: str, folder: Path) -> Outcome:
    right = make_corpus(random, form)
    write(right, folder)
    before = read_corpus(folder, form)
    name = random.choice(list(right))
    whole = (folder / name).read_bytes()
    damaged = damage(random, whole, form)
    if damaged is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(damaged)
    try:
        after = read_corpus(folder, random.choice([form, form, "auto"]))
    except DataError as error:
        judge = judge_paired_message if form in PAIRED else judge_message
        return Outcome(form, "refused", judge(str(error), folder / name, damaged))
    except Exception:  # what must never reach a user
        return Outcome(form, "refused", traceback.format_exc())
    kind = "the same" if after.dialogues == before.dialogues else "other"
    if form in PAIRED:
        return Outcome(form, kind, judge_others(before, after, folder / name, damaged))
    split = next((split for split, file in zip(SPLITS, FORMS[form].files, strict=True) if file == name), None)
    if kind == "the same" or split is None or damaged is None:
        return Outcome(form, kind)
    if form.endswith("-csv") and split_lines(damaged.removeprefix(BOM_UTF8))[0] != right[name][0].text:
        return Outcome(form, kind)  # a table with another header has other columns
    return Outcome(form, kind, judge_reading(before, after, split, right[name], damaged))


def write(files: dict[str, list[Line]], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, lines in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\n".join(line.text for line in lines) + b"\n")


def judge_message(message: str, path: Path, damaged: bytes | None) -> str:
    """Return what is wrong with the refusal of a file, nothing where it tells the place."""
    corpus = re.escape(str(path.parent))
    if path.name == "labels.json" and re.match(rf"{corpus}/\w+\.jsonl:\d+: unknown label", message):
        return ""  # it is a right list of labels, just not of those that the corpus has
    place = re.match(rf"{re.escape(str(path))}:(\d+): .", message)
    if place and 1 <= int(place[1]) <= len(split_lines(damaged or b"")):
        return ""
    known = (path.name in message or "has no example of" in message) and any(words in message for words in WITHOUT_LINE)
    return "" if known and not place else f"no line of {path.name} is named: {message}"


def judge_paired_message(message: str, path: Path, damaged: bytes | None) -> str:
    """Return what is wrong with the refusal of one of two files, nothing where it tells the place in either."""
    place = re.match(r"(.+?\.txt):(\d+): .", message)
    pair = {path.name, path.name.replace("dialogues_", "dialogues_emotion_"), path.name.replace("_emotion", "")}
    if place and Path(place[1]).name in pair:
        data = Path(place[1]).read_bytes()
        return "" if 1 <= int(place[2]) <= len(split_lines(data)) else f"there is no such line: {message}"
    return judge_message(message, path, damaged)


def judge_others(before: Corpus, after: Corpus, path: Path, damaged: bytes | None) -> str:
    """Return what has changed that is not of the damaged file, one of two; who is missing moves IEMOCAP's dev."""
    for split in SPLITS:
        found = {dialogue.id: dialogue for dialogue in after.dialogues[split]}
        for dialogue in before.dialogues[split]:
            if path.stem != dialogue.id and path.parent.name != FOLDERS[split] and damaged is not None:
                if found.get(dialogue.id) != dialogue:
                    return f"{dialogue.id} is another, and {path.name} was damaged"
    return ""


def judge_reading(before: Corpus, after: Corpus, split: str, lines: list[Line], damaged: bytes) -> str:
    """Return what is wrong with the reading of a split whose file was damaged, nothing where it is right."""
    for other in SPLITS:
        if other != split and before.dialogues[other] != after.dialogues[other]:
            return f"{other} is another, and {split} was damaged"
    known = {line.text: line for line in lines}
    found = [known.get(text) for text in split_lines(damaged) if text or text in known]
    expected = Counter(said for line in found if line for said in line.said)
    read = Counter((u.speakers, u.text, u.label) for d in after.dialogues[split] for u in d.utterances)
    if lost := expected - read:
        return f"lost without a word: {next(iter(lost))}"
    room = found.count(None) * max(len(line.said) for line in lines)
    if (more := read - expected).total() > room:
        return f"{more.total()} utterances of {found.count(None)} damaged lines, such as {next(iter(more))}"
    return judge_order(after, split, lines, found)


def split_lines(data: bytes) -> list[bytes]:
    return re.split(rb"\r\n?|\n", data)


def judge_order(after: Corpus, split: str, lines: list[Line], found: Sequence[Line | None]) -> str:
    heard = [[(u.speakers, u.text, u.label) for u in d.utterances] for d in after.dialogues[split]]
    for number in {line.dialogue for line in lines} - {None}:
        whole = [line for line in lines if line.dialogue == number]
        start = found.index(whole[0]) if whole[0] in found else len(found)
        if list(found[start : start + len(whole)]) != whole or any(found.count(line) > 1 for line in whole):
            continue
        said = [said for line in whole for said in line.said]
        if not any([one for one in dialogue if one in said] == said for dialogue in heard):
            return f"dialogue {number} was torn apart or disordered"
    return ""


if __name__ == "__main__":
    sys.exit(main())
