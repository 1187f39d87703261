from erckit.data.dialogue import Dialogue, Utterance, by_session


def test_sessions_are_gathered_in_their_own_order():
    shuffled = [make("a", "pilot", 9), make("b"), make("c", "finale", 0), make("d", "pilot", 2), make("pilot")]

    assert [[dialogue.id for dialogue in session] for session in by_session(shuffled)] == [
        ["d", "a"],
        ["b"],
        ["c"],
        ["pilot"],  # whose name is that of a session
    ]


def make(id, session=None, begins=0):
    return Dialogue(id, (Utterance("0", ("Ada",), "Hi."),), session, begins)
