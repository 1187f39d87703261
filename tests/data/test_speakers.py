import json
import re
from hashlib import blake2b
from pathlib import Path

import erckit.data
import pytest
from erckit.data.corpus import read_corpus
from erckit.data.dialogue import SPLITS, Corpus, Dialogue, Utterance
from erckit.data.errors import DataError
from erckit.data.labels import LabelSet
from erckit.data.speakers import (
    Speaker,
    SpeakerRegistry,
    find_aliases,
    fold_name,
    identify_speakers,
    read_aliases,
    speaker_id,
)
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(min_size=1).filter(lambda name: fold_name(name) != "" and name.strip() != "")
SPEAKERS = st.builds(
    Speaker,
    id=st.integers(0, 2**52 - 1),
    name=NAMES,
    aliases=st.lists(NAMES, max_size=2).map(tuple),
    seen=st.booleans(),
)


@given(st.lists(SPEAKERS, max_size=4, unique_by=(lambda s: s.id, lambda s: fold_name(s.name))).map(tuple))
def test_a_written_registry_reads_back_equal(scratch, speakers):
    path = scratch / "speakers.json"
    SpeakerRegistry(speakers).write(path)

    assert SpeakerRegistry.read(path) == SpeakerRegistry(speakers)
    assert all(SpeakerRegistry.read(path)[speaker.name] == speaker for speaker in speakers)


@given(NAMES)
def test_an_identity_survives_floats_and_int64(name):
    number = speaker_id("tiny", name)

    assert 0 <= number < 2**52
    assert int(float(json.dumps(number))) == number


def test_an_identity_is_the_first_52_bits_of_the_hash():
    digest = blake2b(b"tiny\0ada lovelace").hexdigest()

    bits = f"{int(digest, 16):0512b}"

    assert speaker_id("tiny", "Ada Lovelace") == int(bits[:52], 2)
    assert speaker_id("tiny", "Ada Lovelace") == 3748795339217926  # on every machine, for ever
    assert speaker_id("other", "Ada Lovelace") != speaker_id("tiny", "Ada Lovelace")


@pytest.mark.parametrize("other", ["ADA’s Mum", " Ada's  mum ", "Ada´s\u00a0Mum", "ada‘s\tMUM", "Ada＇s Mum"])
def test_case_quotes_and_blanks_make_no_other_person(other):
    assert fold_name(other) == fold_name("Ada's Mum")
    assert speaker_id("tiny", other) == speaker_id("tiny", "Ada's Mum")


@given(NAMES)
def test_folding_twice_is_folding_once(name):
    assert fold_name(fold_name(name)) == fold_name(name)


def test_spellings_become_the_most_frequent_of_train_and_aliases_the_table_s():
    corpus = make_corpus(
        train=[["ADA"], ["Ada"], ["Ada"], ["Mum’s"]],
        dev=[["Mum's"], ["Mum's"], ["All"], ["BEN"]],
        test=[["ada"], ["Ben"], ["ben"], ["ben"]],
    )

    renamed, registry = identify_speakers(corpus, {"ALL": "Everybody", "Nobody": "No One"})

    assert names(renamed, "train") == [("Ada",), ("Ada",), ("Ada",), ("Mum’s",)]
    assert names(renamed, "dev") == [("Mum’s",), ("Mum’s",), ("Everybody",), ("BEN",)]
    assert names(renamed, "test") == [("Ada",), ("Ben",), ("Ben",), ("Ben",)]  # unseen: as first in the dialogue
    assert [(s.name, s.aliases, s.seen) for s in registry] == [
        ("Ada", ("ADA", "ada"), True),
        ("Mum’s", ("Mum's",), True),
        ("Everybody", ("ALL", "All"), False),
        ("BEN", ("Ben", "ben"), False),
    ]
    assert all(speaker.id == speaker_id("tiny", speaker.name) for speaker in registry)


def test_one_identity_answers_to_every_spelling():
    _, registry = identify_speakers(make_corpus(train=[["Ada"]], test=[["BEN"]]), {})

    assert registry["Ben"] == registry[" ben"] == registry["BEN"]
    assert registry["ben"].id == speaker_id("tiny", "Ben")
    assert "ADA" in registry and len(registry) == 2


@given(st.lists(st.sampled_from(["Ada", "ADA", "Ben", "ben "]), min_size=1), st.data())
def test_a_name_depends_on_train_and_on_what_was_said_before_alone(said, data):
    turn = data.draw(st.integers(1, len(said)))
    respelt = [*said[:turn], *(data.draw(st.sampled_from([name.upper(), name.lower()])) for name in said[turn:])]

    first, second = (
        names(identify_speakers(make_corpus(train=[["Ada"]], dev=dev, test=[[n] for n in test]), {})[0], "test")
        for dev, test in (([["BEN"]], said), ([["ben"]] * 9, respelt))
    )

    assert first[:turn] == second[:turn]


def test_a_tie_goes_to_the_first_spelling():
    renamed, _ = identify_speakers(make_corpus(train=[["ADA"], ["Ada"]]), {})

    assert names(renamed, "train") == [("ADA",), ("ADA",)]


def test_the_table_s_spelling_of_a_canonical_name_wins():
    renamed, registry = identify_speakers(make_corpus(train=[["joey"], ["joey"], ["Drake"]]), {"Drake": "Joey"})

    assert names(renamed, "train") == [("Joey",)] * 3
    assert registry["Joey"].aliases == ("Drake", "joey")


def test_a_person_named_twice_in_one_utterance_speaks_once():
    corpus = make_corpus(train=[["Ada", "Ben", "ADA", "A."]])

    renamed, _ = identify_speakers(corpus, {"A.": "Ada"})

    assert names(renamed, "train") == [("Ada", "Ben")]


@given(st.lists(st.lists(st.sampled_from(["Ada", "ADA", "Ben", "ben ", "Cleo", "C."]), min_size=1), min_size=1))
def test_identifying_changes_names_only_and_once_is_enough(speakers):
    corpus = make_corpus(train=speakers)

    renamed, registry = identify_speakers(corpus, {"C.": "Cleo"})

    before, after = (corpus.dialogues["train"][0].utterances for corpus in (corpus, renamed))
    assert [(u.id, u.text, u.label) for u in after] == [(u.id, u.text, u.label) for u in before]
    assert {name for u in after for name in u.speakers} == {speaker.name for speaker in registry}
    assert identify_speakers(renamed, {"C.": "Cleo"})[0] == renamed


@given(st.lists(NAMES, min_size=1), st.lists(NAMES, min_size=1))
def test_identities_stay_when_the_corpus_grows(some, more):
    _, small = identify_speakers(make_corpus(train=[[name] for name in some]), {})
    _, large = identify_speakers(make_corpus(train=[[name] for name in more + some]), {})

    assert {s.id for s in small} <= {s.id for s in large}
    assert len(large) == len({fold_name(name) for name in more + some})


def test_two_people_of_one_identity_are_an_error():
    twins = (Speaker(7, "Ada", (), True), Speaker(7, "Ben", (), True))

    message = "speakers 'Ada' and 'Ben' have the same id 7. Change the canonical name"
    with pytest.raises(DataError, match=re.escape(message)):
        SpeakerRegistry(twins)


def test_an_unknown_speaker_is_an_error_that_names_the_nearest():
    _, registry = identify_speakers(make_corpus(train=[["Monica Geller"]]), {})

    assert "Monica Geller" in registry and "Monica Gellar" not in registry
    message = "unknown speaker 'Monica Gellar' among 1; expected a canonical name. Did you mean 'Monica Geller'?"
    with pytest.raises(DataError, match=re.escape(message)):
        registry["Monica Gellar"]


def test_a_registry_of_another_shape_is_an_error(tmp_path):
    (tmp_path / "speakers.json").write_text('[{"name": "Ada"}]')

    with pytest.raises(DataError, match=r"speakers\.json: not a list of speakers as erckit writes it .* Run `ingest`"):
        SpeakerRegistry.read(tmp_path / "speakers.json")


def test_an_alias_table_maps_aliases_to_people_and_keeps_names_names(tmp_path):
    path = write(tmp_path, 'Everybody: ["#ALL#", All]\nBond: [007, No]\nAda: []\n')

    assert read_aliases(path) == {"#ALL#": "Everybody", "All": "Everybody", "007": "Bond", "No": "Bond"}
    assert read_aliases(write(tmp_path, "# nobody yet\n")) == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("Ada: [A.]\nAnn: [B.,\n  a.]", ":3: 'a.' stands under 'Ada' and 'Ann'. Each name belongs to one person"),
        ("Ada: [Ann]\nAnn: [B.]", ":2: 'Ann' stands under 'Ada' and 'Ann'."),
        ("Ada: A.", ":1: expected `canonical name: [alias, ...]`."),
        ("Ada: [A.]\nBen: [[x]]", ":2: expected `canonical name: [alias, ...]`."),
        ("- Ada", ":1: expected lines `canonical name: [alias, ...]`."),
        ("Ada: [A.\nBen: [B.]", ":2: broken YAML ("),
    ],
)
def test_bad_alias_tables_are_errors(tmp_path, table, message):
    path = write(tmp_path, table)

    with pytest.raises(DataError, match=re.escape(f"{path}{message}")):
        read_aliases(path)


@pytest.mark.parametrize("name", ["emorynlp", "meld"])
def test_the_shipped_tables_name_people_of_the_corpus(real_data, name):
    spoken = {
        person for split in read_corpus(real_data / name).dialogues.values() for d in split for person in speak(d)
    }

    dead = {alias for alias in find_aliases(name) if alias not in spoken} - {"Everyone"}  # a kindness to other copies
    assert not dead
    assert find_aliases("no such corpus") == {}


def test_the_shipped_table_of_two_corpora_joins_people_of_both(real_data):
    corpora = [identify_speakers(read_corpus(real_data / name), find_aliases(name))[0] for name in ("emorynlp", "meld")]
    emorynlp, meld = ({p for ds in c.dialogues.values() for d in ds for p in speak(d)} for c in corpora)

    joined = find_aliases("emorynlp+meld")
    assert joined and set(joined.values()) <= emorynlp and set(joined) <= meld


def test_the_shipped_tables_lie_in_the_package():
    folder = Path(erckit.data.__file__).parent / "aliases"

    assert sorted(path.stem for path in folder.glob("*.yaml")) == ["emorynlp", "emorynlp+meld", "meld"]


def test_the_forms_of_emorynlp_agree_on_who_is_who(real_data):
    _, text = identify_speakers(read_corpus(real_data / "emorynlp", "emorynlp-text"), find_aliases("emorynlp"))
    _, video = identify_speakers(read_corpus(real_data / "emorynlp", "emorynlp-csv"), find_aliases("emorynlp"))

    assert {(s.id, s.name) for s in video} <= {(s.id, s.name) for s in text}
    assert "Everybody" in text and "#ALL#" not in text
    assert (len(text), sum(s.seen for s in text)) == (260, 230)
    # by hand: 263 names, less four aliases, plus Everybody for #ALL#


def test_meld_s_people_speak_together_and_under_their_own_names(real_data):
    corpus, registry = identify_speakers(read_corpus(real_data / "meld"), find_aliases("meld"))

    assert (len(registry), sum(s.seen for s in registry)) == (287, 248)
    assert not [s.name for s in registry if "/" in s.name or " and " in s.name]
    together = [u for d in corpus.dialogues["train"] for u in d.utterances if len(u.speakers) > 1]
    assert len(together) == 7


def make_corpus(**splits):
    dialogues = {
        split: (Dialogue(split, tuple(say(split, turn, who) for turn, who in enumerate(splits[split]))),)
        if split in splits
        else ()
        for split in SPLITS
    }
    return Corpus("tiny", "test", LabelSet(("mad", "sad")), dialogues)


def say(split, turn, who):
    return Utterance(f"{split}-{turn}", tuple(who), f"line {turn}", "mad")


def names(corpus, split):
    return [u.speakers for dialogue in corpus.dialogues[split] for u in dialogue.utterances]


def speak(dialogue):
    return [name for utterance in dialogue.utterances for name in utterance.speakers]


def write(folder, table):
    path = folder / "aliases.yaml"
    path.write_text(table)
    return path
