"""Fetching from a server of our own that answers as good and bad ones do."""

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from erckit.data import meld
from erckit.data.corpus import read_corpus
from erckit.data.errors import DataError
from erckit.data.labels import MELD
from erckit.pipeline import cli, fetch
from erckit.pipeline.cli import main

SPLITS = {"train": 40, "dev": 30, "test": 20}  # utterances
FILES = {f"{split}_sent_emo.csv": split for split in SPLITS}


def make_table(split: str) -> bytes:
    long = " la" * (10_000 if split == "train" else 1)  # many blocks of 64 KiB
    rows = [f"Line {turn}.{long},Ada,{MELD.names[turn % 7]},{turn // 10},{turn % 10}" for turn in range(SPLITS[split])]
    return "\r\n".join(["Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID", *rows, ""]).encode()


CONTENT = {name: make_table(split) for name, split in FILES.items()}
TRAIN = CONTENT["train_sent_emo.csv"]
RELEASE = fetch.Release(
    address="https://nowhere.invalid",
    files=tuple(FILES),
    published={split: ((count // 10,), count) for split, count in SPLITS.items()},
    read=meld.read_csv,
    known={name: (len(CONTENT[name]), hashlib.sha256(CONTENT[name]).hexdigest()) for name in FILES},
    licence="CC0",
)


class Server:
    """Serves CONTENT with ranges; `answers` holds what is done once, in order, before that. `asked` is what came."""

    def __init__(self) -> None:
        self.content = dict(CONTENT)
        self.answers: list[Callable[[BaseHTTPRequestHandler, bytes], None]] = []
        self.asked: list[tuple[str, str | None]] = []
        self.ranges = True

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rsplit("/", 1)[1]
        self.asked.append((name, request.headers["Range"]))
        if self.answers:
            self.answers.pop(0)(request, self.content[name])
        elif name not in self.content:
            request.send_error(404)
        else:
            self.serve(request, self.content[name])

    def serve(self, request: BaseHTTPRequestHandler, content: bytes, stop: int | None = None) -> None:
        """Send a file, or what is asked of it, as far as byte `stop`, and hang up there."""
        begins = int(request.headers["Range"][6:-1]) if request.headers["Range"] and self.ranges else 0
        if begins and begins >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if begins else 200)
        if begins:
            request.send_header("Content-Range", f"bytes {begins}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - begins))
        request.end_headers()
        request.wfile.write(content[begins:stop])
        request.close_connection = True

    def drop(self, stop: int) -> None:
        self.answers.append(lambda request, content: self.serve(request, content, stop))

    def fail(self, code: int) -> None:
        self.answers.append(lambda request, content: request.send_error(code))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.handle(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        made.address = f"http://127.0.0.1:{http.server_address[1]}/data"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield made
        http.shutdown()


def stand(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_files_arrive_and_the_second_time_nothing_is_asked(server, tmp_path, capsys):
    folder = tmp_path / "new" / "meld"

    found = fetch.fetch(RELEASE, folder, server.address + "/")

    assert stand(folder) == CONTENT
    assert found == f"{folder}: 4/3/2 dialogues, 40/30/20 utterances; licence CC0"
    assert server.asked == [(name, None) for name in FILES]
    assert capsys.readouterr().out.splitlines()[0] == f"train_sent_emo.csv: {len(TRAIN):,} bytes, as published"

    assert fetch.fetch(RELEASE, folder, server.address) == found
    assert len(server.asked) == 3
    assert capsys.readouterr().out == "".join(f"{name}: already there\n" for name in FILES)


def test_a_connection_that_drops_is_taken_up_where_it_broke_off(server, tmp_path, capsys):
    drops = [70_000, 500_000, 500_001, 900_000, 900_001, 900_002, 900_003]  # more than attempts, but each goes on
    assert len(drops) > fetch.ATTEMPTS and drops[-1] < len(TRAIN)
    for stop in drops:
        server.drop(stop)

    fetch.fetch(RELEASE, tmp_path, server.address)

    assert stand(tmp_path) == CONTENT
    assert server.asked[:8] == [("train_sent_emo.csv", byte and f"bytes={byte}-") for byte in (None, *drops)]
    said = capsys.readouterr().out
    assert "  train_sent_emo.csv: the connection broke off after 70,000 bytes; trying again\n" in said


def test_what_an_earlier_call_left_is_kept(server, tmp_path):
    for _ in range(fetch.ATTEMPTS):
        server.drop(500_000)
    message = (
        f"{server.address}/train_sent_emo.csv: the connection broke off, 5 times in a row. 500,000 bytes are kept in "
        f"{tmp_path / 'train_sent_emo.csv.part'}; the same command goes on from there. Check the network, or name"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        fetch.fetch(RELEASE, tmp_path, server.address)
    assert stand(tmp_path) == {"train_sent_emo.csv.part": TRAIN[:500_000]}

    fetch.fetch(RELEASE, tmp_path, server.address)
    assert server.asked[fetch.ATTEMPTS] == ("train_sent_emo.csv", "bytes=500000-")
    assert stand(tmp_path) == CONTENT


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges = False
    server.drop(500_000)
    fetch.fetch(RELEASE, tmp_path, server.address)

    assert server.asked[1] == ("train_sent_emo.csv", "bytes=500000-")
    assert stand(tmp_path) == CONTENT


def test_a_part_that_is_the_whole_file_is_not_asked_for_again_and_a_longer_one_is_begun_anew(server, tmp_path):
    (tmp_path / "train_sent_emo.csv.part").write_bytes(TRAIN)
    (tmp_path / "dev_sent_emo.csv.part").write_bytes(CONTENT["dev_sent_emo.csv"] + b"more")

    fetch.fetch(RELEASE, tmp_path, server.address)

    assert stand(tmp_path) == CONTENT
    assert [byte for name, byte in server.asked if name == "dev_sent_emo.csv"][1:] == [None]


def test_errors_of_the_server_that_pass_are_waited_for(server, tmp_path):
    for code in (500, 503, 429):
        server.fail(code)
    fetch.fetch(RELEASE, tmp_path, server.address)
    assert stand(tmp_path) == CONTENT


def test_errors_of_the_server_that_stay_are_told(server, tmp_path):
    for _ in range(fetch.ATTEMPTS):
        server.fail(500)
    message = f"{server.address}/train_sent_emo.csv: the server answered 500 Internal Server Error, 5 times in a row. 0"
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        fetch.fetch(RELEASE, tmp_path, server.address)
    assert len(server.asked) == fetch.ATTEMPTS


def test_a_file_that_is_not_there_is_asked_for_once(server, tmp_path):
    del server.content["dev_sent_emo.csv"]

    message = (
        f"{server.address}/dev_sent_emo.csv: the server answered 404 Not Found. Check the address; a mirror has the "
        "files right under it."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        fetch.fetch(RELEASE, tmp_path, server.address)
    assert stand(tmp_path) == {"train_sent_emo.csv": TRAIN}
    assert len(server.asked) == 2


def test_no_server_at_all_is_told(server, tmp_path):
    message = r"^http://127\.0\.0\.1:9/train_sent_emo\.csv: no answer \(.*refused.*\), 5 times in a row\. 0 bytes"
    with pytest.raises(DataError, match=message):
        fetch.fetch(RELEASE, tmp_path, "http://127.0.0.1:9")


@pytest.mark.parametrize("address", ["ftp://there", "https:", "http://[::1", "http://there/my files"])
def test_what_is_no_address_is_refused_at_once(server, tmp_path, address):
    message = f"{address}: expected an address such as https://HOST/FOLDER, with %20 for a blank."
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        fetch.fetch(RELEASE, tmp_path, address)
    assert stand(tmp_path) == {}


UNKNOWN = replace(RELEASE, known={})
OTHER = TRAIN.replace(b"Line 7.", b"Line 8.", 1)


@pytest.mark.parametrize(
    ("release", "content", "message"),
    [
        (RELEASE, TRAIN + b"\r\n", f"{len(TRAIN) + 2:,} bytes, published {len(TRAIN):,}. Fetch again, or from another"),
        (
            RELEASE,
            OTHER,
            f"its SHA-256 is {hashlib.sha256(OTHER).hexdigest()}, published {hashlib.sha256(TRAIN).hexdigest()}. ",
        ),
        (UNKNOWN, b"<html>Sign in</html>", "not what was published ("),
        (UNKNOWN, make_table("dev"), "3 dialogues with 30 utterances, published 4 with 40. Fetch again, or "),
    ],
    ids=["size", "bytes", "a page", "counts"],
)
def test_wrong_content_gets_no_name_and_is_not_kept(server, tmp_path, release, content, message):
    server.content["train_sent_emo.csv"] = content

    with pytest.raises(DataError, match=f"^{re.escape(f'{server.address}/train_sent_emo.csv: {message}')}"):
        fetch.fetch(release, tmp_path, server.address)
    assert stand(tmp_path) == {}


def test_a_part_of_something_else_is_found_out(server, tmp_path):
    (tmp_path / "train_sent_emo.csv.part").write_bytes(b"?" * 1000)
    with pytest.raises(DataError, match="its SHA-256 is "):
        fetch.fetch(RELEASE, tmp_path, server.address)

    fetch.fetch(RELEASE, tmp_path, server.address)
    assert stand(tmp_path) == CONTENT


def test_a_file_of_the_user_s_own_is_never_touched(server, tmp_path):
    path = tmp_path / "dev_sent_emo.csv"
    path.write_bytes(b"mine")

    message = f"{path}: 4 bytes, published {len(CONTENT[path.name]):,}. Move it away, and fetch again."
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        fetch.fetch(RELEASE, tmp_path, server.address)
    assert path.read_bytes() == b"mine"


def test_an_answer_for_another_range_is_refused(server, tmp_path):
    def answer(request, content):
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 900-999/{len(content)}")
        request.end_headers()

    (tmp_path / "train_sent_emo.csv.part").write_bytes(TRAIN[:500])
    server.answers.append(answer)

    message = "asked from byte 500 on, the server answered Content-Range 'bytes 900-999/"
    with pytest.raises(DataError, match=re.escape(message)):
        fetch.fetch(RELEASE, tmp_path, server.address)
    assert stand(tmp_path) == {"train_sent_emo.csv.part": TRAIN[:500]}


def test_the_command_offers_every_release():
    assert cli.CORPORA == tuple(fetch.RELEASES)


def test_what_is_known_of_the_releases_is_so(real_data):
    for corpus, release in fetch.RELEASES.items():
        content = {name: (real_data / corpus / name).read_bytes() for name in release.known}
        assert release.known == {name: (len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in content.items()}


def test_the_command_fetches_the_real_meld(server, real_data, tmp_path, capsys):
    server.content = {name: (real_data / "meld" / name).read_bytes() for name in FILES}
    server.drop(400_000)

    assert main(["fetch", "meld", str(tmp_path / "meld"), "--mirror", server.address]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{tmp_path / 'meld'}: 1,038/114/280 dialogues, 9,989/1,109/2,610 utterances; licence GPL-3.0"
    )
    assert read_corpus(tmp_path / "meld").differences == ()


def test_the_command_checks_the_real_emorynlp(server, real_data, tmp_path, capsys):
    """Its train file is not among ours; dev's in its place is told from it."""
    dev = real_data / "emorynlp" / "emotion-detection-dev.json"
    server.content["emotion-detection-trn.json"] = dev.read_bytes()

    assert main(["fetch", "emorynlp", str(tmp_path), "--mirror", server.address]) == 2
    assert capsys.readouterr().err == (
        f"erckit: {server.address}/emotion-detection-trn.json: 99 dialogues with 1,344 utterances, published 713 with "
        "9,934. Fetch again, or from another mirror.\n"
    )
