"""Groups of utterances: by who speaks, by what they felt before, by turn."""

from erckit.data.dialogue import Dialogue, Utterance
from erckit.data.speakers import Speaker, SpeakerRegistry
from erckit.pipeline.groups import TITLES, group_utterances
from hypothesis import given
from hypothesis import strategies as st

PEOPLE = SpeakerRegistry((Speaker(1, "Ada", (), True), Speaker(2, "Ben", (), True), Speaker(3, "Cleo", (), False)))

turns = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["Ada", "Ben", "Cleo"]), min_size=1, max_size=2, unique=True),
        st.sampled_from(["glad", "sad", None]),
    ),
    min_size=1,
    max_size=30,
)


def talk(rows: list, id: str = "d") -> Dialogue:
    said = [Utterance(str(turn), tuple(who), "So.", label) for turn, (who, label) in enumerate(rows)]
    return Dialogue(id, tuple(said))


def names(groups: dict, kind: str) -> dict[int, str]:
    """The group of each turn of dialogue d; no turn is in two."""
    found = [(int(id), name) for name, members in groups[kind].items() for dialogue, id in members if dialogue == "d"]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_a_hand_case():
    rows = [
        (["Ada"], "glad"),  # first
        (["Ben"], "sad"),  # first
        (["Ada"], "glad"),  # inertia
        (["Ben"], None),  # nobody knows
        (["Ben"], "glad"),  # shift, from the turn before the last
        (["Ada", "Cleo"], "sad"),  # shift, from what Ada felt
        (["Cleo"], "sad"),  # inertia, with Ada
        (["Ben", "Ada"], "sad"),  # inertia: Ada spoke later than Ben
    ]
    groups = group_utterances([talk(rows), talk(rows[:1], "e")], PEOPLE)

    kinds = ["first", "first", "inertia", None, "shift", "shift", "inertia", "inertia"]
    assert names(groups, "emotion") == {turn: kind for turn, kind in enumerate(kinds) if kind}
    assert groups["emotion"]["first"] >= {("e", "0")}  # nothing is carried from dialogue to dialogue
    assert groups["speaker"]["unseen"] == {("d", "5"), ("d", "6")}
    assert groups["turn"]["1"] == {("d", "0"), ("e", "0")} and groups["turn"]["6 to 10"] == {
        ("d", "5"),
        ("d", "6"),
        ("d", "7"),
    }


@given(turns)
def test_groups_are_those_of_brute_force(rows):
    groups = group_utterances([talk(rows)], PEOPLE)

    expected = {}
    for turn, (who, label) in enumerate(rows):
        earlier = [before for before in range(turn) if rows[before][1] and set(rows[before][0]) & set(who)]
        if label and not earlier:
            expected[turn] = "first"
        elif label:
            expected[turn] = "inertia" if rows[earlier[-1]][1] == label else "shift"
    assert names(groups, "emotion") == expected
    assert names(groups, "speaker") == {t: "unseen" if "Cleo" in who else "seen" for t, (who, _) in enumerate(rows)}
    bins = {**dict.fromkeys(range(1, 5), "2 to 5"), **dict.fromkeys(range(5, 10), "6 to 10")}
    bins |= {0: "1"} | dict.fromkeys(range(10, 20), "11 to 20") | dict.fromkeys(range(20, 30), "21 on")
    assert names(groups, "turn") == {turn: bins[turn] for turn in range(len(rows))}


def test_without_speakers_there_are_no_groups_of_them_and_every_group_has_a_title():
    groups = group_utterances([talk([(["Ada"], "glad")])], None)

    assert groups["speaker"] == {"seen": set(), "unseen": set()} and groups["emotion"]["first"] == {("d", "0")}
    assert {kind: members.keys() for kind, members in groups.items()} == {k: t.keys() for k, t in TITLES.items()}
