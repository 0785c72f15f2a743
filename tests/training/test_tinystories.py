"""tinystories.py: the three commands on a small archive from a server on this machine."""

import io
import json
import shutil
import tarfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import tinystories
from bench.words import used, words_in
from llama import hub
from llama.errors import BadFileError
from llama.formats import tokenizers
from training.shards import open_split
from training.tokenizers import train as train_tokenizer

STORIES = [
    [f" Story {i} of file {n}.\nThe cat sat  on {i * n} mats. \n" for i in range(40)] for n in range(4)
]


def archive_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


ARCHIVE = archive_of(
    {
        f"./data{n:02}.json": json.dumps([{"story": s, "source": "x"} for s in stories]).encode()
        for n, stories in enumerate(STORIES)
    }
    | {"../escape.json": b"[]", "README": b"hello"}
)


class Server(ThreadingHTTPServer):
    """Serves ARCHIVE. breaks: how many responses stop after half of what they promised."""

    ranges, breaks, data = True, 0, ARCHIVE
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        size, begin = len(self.server.data), 0
        if self.path != "/stories.tar.gz":
            return self.send_error(404)
        if asked and self.server.ranges:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if begin < size else 416)
            span = f"{begin}-{size - 1}" if begin < size else "*"
            self.send_header("Content-Range", f"bytes {span}/{size}")
        else:
            self.send_response(200)
        body = self.server.data[begin:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks > 0:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(tinystories.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments) -> int:
    return tinystories.run_command(lambda: tinystories.main([str(a) for a in arguments]))


def download(server, data, name="stories.tar.gz") -> int:
    return run("download", "--data", data, "--url", f"http://127.0.0.1:{server.server_port}/{name}")


def refused(capfd, says) -> None:
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line


def is_whole(data) -> bool:
    files = sorted((data / tinystories.FOLDER).iterdir())
    found = [[item["story"] for item in json.loads(path.read_bytes())] for path in files]
    return found == STORIES and not list(data.glob("*.part")) and not list(data.glob("*.tmp"))


# --- download


def test_download_brings_the_stories_and_nothing_else(server, tmp_path):
    assert download(server, tmp_path / "data") == 0
    assert is_whole(tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    assert download(server, tmp_path / "data") == 0
    assert len(server.asked) == 1  # the second time nothing was asked for


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, tmp_path):
    server.breaks = 3
    assert download(server, tmp_path) == 0
    assert is_whole(tmp_path)
    begins = [int(asked[6:-1]) for asked in server.asked[1:]]
    half = len(ARCHIVE) // 2
    assert begins[0] == half
    assert len(begins) == 3
    assert begins == sorted(begins)


def test_a_download_that_was_stopped_is_gone_on_with(server, tmp_path):
    part = tmp_path / f"{tinystories.FOLDER}.tar.gz.part"
    part.write_bytes(ARCHIVE[:100])
    assert download(server, tmp_path) == 0
    assert server.asked == ["bytes=100-"]
    assert is_whole(tmp_path)


def test_a_download_that_was_stopped_at_its_very_end_is_complete(server, tmp_path):
    (tmp_path / f"{tinystories.FOLDER}.tar.gz.part").write_bytes(ARCHIVE)
    assert download(server, tmp_path) == 0
    assert is_whole(tmp_path)


def test_a_server_that_can_not_go_on_begins_again(server, tmp_path):
    server.ranges = False
    (tmp_path / f"{tinystories.FOLDER}.tar.gz.part").write_bytes(b"x" * 100)
    assert download(server, tmp_path) == 0
    assert is_whole(tmp_path)


def test_a_connection_that_breaks_again_and_again_is_an_error_that_keeps_what_came(server, tmp_path, capfd):
    server.breaks = 100
    assert download(server, tmp_path) == 3
    refused(capfd, "the connection broke, 5 times; what is here is kept")
    assert (tmp_path / f"{tinystories.FOLDER}.tar.gz.part").stat().st_size > len(ARCHIVE) // 2


def test_an_archive_that_is_damaged_is_refused_and_no_folder_appears(server, tmp_path, capfd):
    for damage in (b"no archive", ARCHIVE[: len(ARCHIVE) // 2], ARCHIVE[:300] + b"\0" * 50 + ARCHIVE[350:]):
        (tmp_path / f"{tinystories.FOLDER}.tar.gz").unlink(missing_ok=True)
        server.data = damage
        assert download(server, tmp_path) == 3
        refused(capfd, "is no whole .tar.gz")
        assert not (tmp_path / tinystories.FOLDER).exists()


def test_a_wrong_address_is_refused(server, tmp_path, capfd):
    assert download(server, tmp_path, "nothing.tar.gz") == 3
    refused(capfd, "the server says 404")
    assert run("download", "--data", tmp_path, "--url", "stories.tar.gz") == 3
    refused(capfd, "is no address")
    assert run("download", "--data", tmp_path, "--url", "http://127.0.0.1:9/x") == 3
    refused(capfd, "refused, 5 times")


# --- vocabulary and tokens


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / tinystories.FOLDER
    folder.mkdir()
    for n, stories in enumerate(STORIES):
        (folder / f"data{n:02}.json").write_text(json.dumps([{"story": story} for story in stories]))
    return tmp_path


def test_the_tokens_are_the_stripped_stories_and_data00_is_held_out(data):
    assert run("train_vocab", "--vocab_size=310", "--data", data) == 0
    assert (data / "tok310.bin").exists()
    assert run("pretokenize", "--vocab_size=310", "--data", data, "--workers=1") == 0
    tokenizer = tokenizers.load(data / "tok310")
    assert tokenizer.vocab_size == 310
    for split, stories in (("val", STORIES[0]), ("train", STORIES[1] + STORIES[2] + STORIES[3])):
        (shard,) = open_split(data / "tok310", split)
        begins = [0, *shard.ends[:-1]]
        found = [shard.tokens[int(b) : int(e)] for b, e in zip(begins, shard.ends, strict=True)]
        assert [tokenizer.decode(document) for document in found] == [story.strip() for story in stories]
        assert shard.n_bytes == sum(len(story.strip().encode()) for story in stories)
        assert shard.tokenizer_hash == tokenizer.hash


def test_the_vocabulary_does_not_learn_from_the_validation_split(data):
    (data / tinystories.FOLDER / "data00.json").write_text(json.dumps([{"story": "ж" * 1000}]))
    assert run("train_vocab", "--vocab_size=310", "--data", data) == 0
    model = tokenizers.load(data / "tok310.model").model
    assert "ж" not in "".join(model.id_to_piece(i) for i in range(310))


def test_another_folder_and_tokenizer_can_be_named(data, tmp_path):
    folder = data / tinystories.FOLDER
    train_tokenizer(STORIES[1], 300, tmp_path / "mine.model")
    options = ["--vocab_size=0", "--input", folder, "--tokenizer", tmp_path / "mine.model", "--workers=1"]
    assert run("pretokenize", "--data", tmp_path / "new", *options) == 0
    assert open_split(tmp_path / "new" / "tok300", "val")[0].vocab_size == 300


def test_who_asks_for_three_words_gets_a_story_that_has_them(data):
    """Words of the stories for training, neither rare nor everywhere, and no names."""
    words = ["fox", "pond", "honey", "boat"]
    rare = f"The cat saw Tim. {' '.join(words)}"
    for n in range(4):
        stories = [{"story": f" {'The cat saw Tim.' if i % 40 else rare}\n"} for i in range(400)]
        (data / tinystories.FOLDER / f"data{n:02}.json").write_text(json.dumps(stories))
    assert run("words", "--data", data) == 0
    for split, n in (("train", 30), ("val", 10)):
        lines = [json.loads(line)["messages"] for line in (data / "words" / f"{split}.jsonl").open()]
        assert len(lines) == n
        for asked, answer in lines:
            assert answer == {"role": "assistant", "content": rare}
            found = words_in(asked["content"])
            assert asked["content"] == tinystories.request(found)
            assert len(set(found) & set(words)) == 3
            assert used([*found, "cow"], answer["content"]) == 0.75
        assert len({asked["content"] for asked, _ in lines}) > 5


def test_a_vocabulary_that_is_missing_is_trained_once(data, capfd):
    assert run("pretokenize", "--vocab_size=310", "--data", data, "--workers=1") == 0
    assert "tok310.model: is not there yet, a vocabulary is trained first" in capfd.readouterr().out
    trained = (data / "tok310.model").read_bytes()
    shutil.rmtree(data / "tok310")
    assert run("pretokenize", "--vocab_size=310", "--data", data, "--workers=1") == 0
    assert "trained" not in capfd.readouterr().out
    assert (data / "tok310.model").read_bytes() == trained
    assert open_split(data / "tok310", "val")[0].vocab_size == 310


def test_a_vocabulary_of_0_is_that_of_llama_2_from_the_hub(data, tmp_path, capfd, monkeypatch):
    """Another tokenizer stands in for its 32,000 tokens: all that it takes is what the hub gives."""
    train_tokenizer(STORIES[1], 300, tmp_path / "llama2.model")
    monkeypatch.setattr(
        hub, "fetched", lambda place: {hub.LLAMA2_TOKENIZER: tmp_path / "llama2.model"}[place]
    )
    assert run("pretokenize", "--vocab_size=0", "--data", data, "--workers=1") == 0
    tokens = data / "tok300" / "tokenizer.model"
    assert tokens.read_bytes() == (tmp_path / "llama2.model").read_bytes()

    def unreachable(place: hub.Place) -> str:
        raise BadFileError(f"{place.name}: the hub does not answer")

    monkeypatch.setattr(hub, "fetched", unreachable)
    assert run("pretokenize", "--vocab_size=0", "--data", data) == 3
    refused(capfd, "the tokenizer of Llama 2: the hub does not answer; or name a copy with --tokenizer")


def test_what_is_missing_or_wrong_is_one_line(data, tmp_path, capfd):
    assert run("train_vocab", "--vocab_size=310", "--data", tmp_path / "none") == 3
    refused(capfd, "tinystories.py download")
    assert run("train_vocab", "--vocab_size=100", "--data", data) == 3
    refused(capfd, "smaller than required_chars")
    train_tokenizer(STORIES[1], 300, data / "tok310.model")
    assert run("pretokenize", "--vocab_size=310", "--data", data) == 3
    refused(capfd, "vocab_size = 300, allowed 310")


@pytest.mark.parametrize("option", ["--data=", "--input=", "--tokenizer=", "--output="])
def test_a_path_that_is_empty_is_refused(capsys, option):
    with pytest.raises(SystemExit):
        run("pretokenize", option)
    assert "is empty, allowed is a path" in capsys.readouterr().err
