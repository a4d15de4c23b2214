"""A release goes to a stand-in of the hub byte for byte; what keeps it from going is one clear line."""

import socket
from pathlib import Path

import pytest

from qedmeg.release import build, upload
from tests.release.conftest import QUICK
from tests.release.hub import TOKEN, Hub


@pytest.fixture(scope="module")
def out(two_stages, tmp_path_factory) -> Path:
    """A release, not to be changed."""
    folder = tmp_path_factory.mktemp("pushed") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "CHECKS", QUICK)
        assert build.build(build.Request(two_stages / "second", folder, "org/model")).equal
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A hub that the environment names, with its token in it."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.address)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # xet's servers have no stand-in here
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _refused(ended, *parts: str) -> None:
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.status == 2
    assert all(part in line for part in parts), line
    assert "Traceback" not in ended.err
    assert TOKEN not in ended.err + ended.out


def test_every_byte_arrives_and_old_weights_go(release, hub, out):
    hub.repos["org/model"] = True
    hub.files = {"model-00001-of-00002.safetensors": b"old", "notes.txt": b"mine"}
    ended = release("--out", out, "--push", "org/model", "--private")
    assert (ended.status, ended.err.count("error")) == (0, 0)
    assert hub.files == {**_contents(out), "notes.txt": b"mine"}
    assert any(request.startswith("PUT /store/") for request in hub.requests)  # the weights, as a large file
    assert f"{hub.address}/org/model" in ended.out
    assert TOKEN not in ended.out + ended.err


def test_a_new_repository_is_private_when_asked(release, hub, out, two_stages, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHECKS", QUICK)
    arguments = ("--run", two_stages / "second", "--out", tmp_path / "new", "--push", "org/new", "--private")
    assert release(*arguments).status == 0
    assert hub.repos == {"org/new": True}
    assert hub.files == _contents(tmp_path / "new")
    assert b"name = 'org/new'" in hub.files["README.md"]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda hub, env: env.delenv("HF_TOKEN"), ["HF_TOKEN holds no token"]),
        (lambda hub, env: env.setenv("HF_TOKEN", "hf_wrong_wrong"), ["does not take the token", "401"]),
        (lambda hub, env: env.setenv("HF_HUB_OFFLINE", "1"), ["HF_HUB_OFFLINE is set", "unset it"]),
        (lambda hub, env: env.setenv("HF_ENDPOINT", f"http://127.0.0.1:{_free_port()}"), ["cannot be reached"]),
        (lambda hub, env: hub.repos.update({"org/model": False}), ["there and public", "--private"]),
        (lambda hub, env: (setattr(hub, "silent", True), env.setattr(upload, "CHECK_SECONDS", 5.0)), ["in 5 s"]),
    ],
    ids=["no token", "wrong token", "offline", "no network", "public", "silent"],
)
def test_what_can_be_seen_before_anything_is_converted(release, hub, two_stages, tmp_path, monkeypatch, change, parts):
    change(hub, monkeypatch)
    out = tmp_path / "out"
    _refused(release("--run", two_stages / "second", "--out", out, "--push", "org/model", "--private"), *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model", "a/b/c", "org/mo del", "org/..", "/model"])
def test_a_name_that_is_none(release, hub, two_stages, tmp_path, name):
    _refused(release("--run", two_stages / "second", "--out", tmp_path / "out", "--push", name), "--push: ", repr(name))
    assert hub.requests == []


@pytest.mark.parametrize(
    ("path", "status", "parts"),
    [
        ("/api/repos/create", 403, ["may not write to org/model (403)"]),
        ("/api/models/org/model/commit", 403, ["may not write to org/model (403)"]),
        ("/api/models/org/model/preupload", 401, ["does not take the token"]),
        ("/org/model.git/info/lfs", 403, ["may not write to org/model (403)"]),
        ("/store/", 400, ["status 400", "push again"]),
    ],
)
def test_the_hub_refuses_the_upload(release, hub, out, path, status, parts):
    hub.refuse[path] = status
    _refused(release("--out", out, "--push", "org/model"), *parts)
    assert hub.files == {}


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), ["model.safetensors: has not the checksum"]),
        (lambda folder: (folder / "lineage.json").unlink(), ["lineage.json: is in SHA256SUMS and not there"]),
        (lambda folder: (folder / "more.txt").write_text("x"), ["more.txt: is not in SHA256SUMS"]),
        (lambda folder: (folder / "SHA256SUMS").unlink(), ["holds no SHA256SUMS"]),
    ],
)
def test_a_release_that_was_changed_is_not_pushed(release, hub, out, tmp_path, damage, parts):
    import shutil

    folder = Path(shutil.copytree(out, tmp_path / "copy"))
    damage(folder)
    _refused(release("--out", folder, "--push", "org/model"), *parts)
    assert hub.files == {}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
