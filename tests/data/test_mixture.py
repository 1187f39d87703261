"""Mixing corpora: nothing of dev and test changes, nothing of them comes into train, emotions keep their meaning."""

from dataclasses import replace

import pytest
from erckit.data.dialogue import Corpus, Dialogue, Utterance
from erckit.data.errors import DataError
from erckit.data.labels import EMORYNLP, MELD, LabelSet
from erckit.data.mixture import measure_overlap, mix_corpora, read_feelings, translate_labels
from hypothesis import given
from hypothesis import strategies as st

LONG = "You know that I have never once seen it"  # nine words


def make_corpus(name: str, labels: LabelSet, **splits: list[tuple[str, str | None]]) -> Corpus:
    """A corpus with one dialogue a split, of the texts and labels given."""
    dialogues = {
        split: (
            Dialogue(
                split,
                tuple(Utterance(str(turn), ("Ada",), text, label) for turn, (text, label) in enumerate(said)),
                session="s1",
            ),
        )
        for split, said in splits.items()
    }
    return Corpus(name, "erckit-jsonl", labels, dialogues)


@pytest.fixture
def main() -> Corpus:
    said = [("Fine.", "joyful"), ("No!", "mad")]
    return make_corpus("main", EMORYNLP, train=said, dev=[("Hm.", "sad")], test=[(f"“{LONG}!”", "sad"), ("Hm.", "sad")])


@pytest.fixture
def other() -> Corpus:
    said = [("Great.", "joy"), ("What?", "surprise"), ("So?", None)]
    made = make_corpus("other", MELD, train=said, dev=[("Oh.", "fear")], test=[(LONG.lower(), "anger")])
    again = replace(
        made.dialogues["train"][0], id="again", utterances=(Utterance("0", ("Ada",), LONG.upper(), "fear"),)
    )
    return replace(made, dialogues=made.dialogues | {"train": (*made.dialogues["train"], again)})


def test_train_of_the_other_is_added_in_the_label_set_of_the_main_one(main, other):
    mixed = mix_corpora(main, [(other, {"Ada": "Ada L."})], read_feelings(), drop_overlap=False)

    assert mixed.labels == EMORYNLP and mixed.dialogues["train"][:1] == main.dialogues["train"]
    assert all(mixed.dialogues[split] == main.dialogues[split] for split in ("dev", "test"))
    added = mixed.dialogues["train"][1:]
    assert [dialogue.id for dialogue in added] == ["other:train", "other:again"]
    assert [[u.label for u in dialogue.utterances] for dialogue in added] == [
        ["joyful", None, None],
        ["scared"],
    ]
    assert {u.speakers for dialogue in added for u in dialogue.utterances} == {("Ada L.",)}
    assert {dialogue.session for dialogue in added} == {"other:s1"}
    assert mixed.differences == (
        "train: 2 dialogues of other were added; fear as scared, sadness as sad, joy as joyful, anger as mad; "
        "surprise, disgust unlabelled, as main has no word for it.",
    )


def test_dialogues_that_stand_in_test_are_left_out_however_they_are_written(main, other):
    mixed = mix_corpora(main, [(other, {})], read_feelings(), drop_overlap=True)

    assert [dialogue.id for dialogue in mixed.dialogues["train"]] == ["train", "other:train"]
    assert "1 dialogues of other were added, 1 left out that stand in dev or test" in mixed.differences[0]


def test_overlap_counts_long_utterances_only(main, other):
    lax = mix_corpora(main, [(other, {})], read_feelings(), drop_overlap=False)
    strict = mix_corpora(main, [(other, {})], read_feelings(), drop_overlap=True)

    assert [(o.split, o.repeated, o.compared) for o in measure_overlap(lax)] == [("dev", 0, 0), ("test", 1, 1)]
    assert [(o.split, o.repeated, o.compared) for o in measure_overlap(strict)] == [("dev", 0, 0), ("test", 0, 1)]
    assert [(o.split, o.repeated, o.compared) for o in measure_overlap(lax, [other])][2:] == [
        ("other dev", 0, 0),
        ("other test", 1, 1),
    ]
    assert str(measure_overlap(lax)[1]) == (
        "test: 1 of 1 utterances of 8 words and more (100.0 %) stand word for word in train."
    )


@given(st.lists(st.sampled_from(["a b c d e f g h", "A b, c d e f g h!", "one two", "b c d e f g h i"]), min_size=1))
def test_overlap_equals_brute_force(texts):
    said = [(text, None) for text in texts]
    corpus = make_corpus("c", EMORYNLP, train=said[::2] or said, dev=said, test=said[1::2] or said)
    alike = {text: text.lower().replace(",", "").replace("!", "") for text in texts}
    for found in measure_overlap(corpus):
        asked = [u.text for d in corpus.dialogues[found.split] for u in d.utterances if len(u.text.split()) >= 8]
        known = [alike[u.text] for d in corpus.dialogues["train"] for u in d.utterances]
        assert (found.repeated, found.compared) == (sum(alike[text] in known for text in asked), len(asked))


def test_emotions_translate_both_ways_where_both_have_a_word():
    there, back = (translate_labels(*sets, read_feelings()) for sets in ((MELD, EMORYNLP), (EMORYNLP, MELD)))

    assert there == {
        **{"neutral": "neutral", "surprise": None, "fear": "scared", "sadness": "sad", "joy": "joyful"},
        **{"disgust": None, "anger": "mad"},
    }
    assert all(back[word] == label for label, word in there.items() if word is not None)
    assert back["peaceful"] is None and back["powerful"] is None


def test_the_table_of_feelings_is_the_user_s_to_edit(main, other, tmp_path):
    table = tmp_path / "feelings.yaml"
    table.write_text("scared: [fear, Surprise]\n")
    mixed = mix_corpora(main, [(other, {})], read_feelings(table), drop_overlap=False)
    assert [u.label for u in mixed.dialogues["train"][1].utterances] == [None, "scared", None]

    table.write_text("scared: [fear]\nmad: [Fear]\n")
    with pytest.raises(DataError, match=r"feelings.yaml: 'fear' stands in two lines. Each word belongs to one"):
        read_feelings(table)
    for wrong in ("scared: fear\n", "- scared\n", "", "scared: [[fear]]\n"):
        table.write_text(wrong)
        with pytest.raises(DataError, match=r"feelings.yaml: expected lines `emotion: \[other words for it, ...\]`."):
            read_feelings(table)
    table.write_text("scared: [fear\n")
    with pytest.raises(DataError, match=r"feelings.yaml: broken YAML"):
        read_feelings(table)


def test_a_corpus_is_mixed_in_once_and_not_with_itself(main, other):
    for others in ([main], [other, other]):
        with pytest.raises(
            DataError, match=f"corpus {others[0].name} is mixed with itself. Name other corpora in data"
        ):
            mix_corpora(main, [(replace(one), {}) for one in others], read_feelings(), drop_overlap=True)
