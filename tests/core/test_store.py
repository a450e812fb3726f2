import os

import pytest

from mosaic.core.errors import DamageError
from mosaic.core.store import Store, path_digest


def test_what_is_filed_is_what_is_read(tmp_path):
    store = Store(tmp_path)
    digest = store.put_json({"b": [1, 2], "a": None})
    assert Store(tmp_path).get_json(digest) == {"a": None, "b": [1, 2]}
    assert store.put_json({"a": None, "b": [1, 2]}) == digest


def test_a_folder_is_filed_by_its_content(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "f").write_text("same")
    store = Store(tmp_path / "run")
    digest = store.put_folder(tmp_path / "one")
    assert digest == store.put_folder(tmp_path / "two") == path_digest(tmp_path / "one")
    assert (store.path(digest) / "deep" / "f").read_text() == "same"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_damage_is_never_loaded_as_something_else(tmp_path, kind, damage):
    store = Store(tmp_path / "run")
    if kind == "file":
        digest = store.put_bytes(b"0123456789")
        victim = store.root / digest
    else:
        (tmp_path / "f").mkdir()
        (tmp_path / "f" / "x").write_bytes(b"0123456789")
        digest = store.put_folder(tmp_path / "f")
        victim = store.root / digest / "x"
    data = victim.read_bytes()
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(data[:-1] if damage == "truncate" else b"1" + data[1:])
    with pytest.raises(DamageError):
        Store(tmp_path / "run").path(digest)


def test_whoever_files_a_folder_second_at_the_same_time_finds_it_filed(tmp_path, monkeypatch):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x").write_bytes(b"same")
    store, rename = Store(tmp_path / "run"), os.rename

    def overtaken(source, target):
        monkeypatch.setattr(os, "rename", rename)
        Store(tmp_path / "run").put_folder(tmp_path / "f")
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    digest = store.put_folder(tmp_path / "f")
    assert [path.name for path in store.root.iterdir()] == [digest]
    assert (store.path(digest) / "x").read_bytes() == b"same"


def test_a_sweep_takes_what_the_dead_left_and_leaves_what_the_living_write(tmp_path):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    store = Store(tmp_path / "run")
    (store.root / f".{child}-0.tmp").mkdir()
    (store.root / ".0123456789abcdef.tmp").write_bytes(b"by a release that named no process")
    (store.root / f".{os.getpid()}-0.tmp").mkdir()
    store.sweep()
    assert [path.name for path in store.root.iterdir()] == [f".{os.getpid()}-0.tmp"]
