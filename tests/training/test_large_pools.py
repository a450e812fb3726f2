"""Pools larger than memory: sorted on disk, in shards, by processes, and read a part at a time."""

import gc
import json
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.core.errors import UsageError
from mosaic.core.types.data import Focus, Mixture
from training.data import pool_files, pool_writer, runs
from training.data.build import BuildOptions, build, build_shard
from training.data.curate import curate
from training.data.merge import merge
from training.data.pool import Pool
from training.data.pool_format import file_facts
from training.data.shards import Part
from training.data.texts import BLOCK_ROWS, TextsWriter, every_text, read_texts
from training.data.upgrade import upgrade

FILES = ("index.parquet", "rows.arrow")
TRUSTED = BuildOptions(max_length=512, trust_token_counts=True)


def content(pool):
    """All that a pool folder says: manifest, index, texts.

    The bytes of the texts' file may differ: Arrow writes a column of texts in more ways than one.
    """
    opened = Pool.open(pool)
    opened.verify()
    manifest = {k: v for k, v in opened.manifest.items() if k != "files"}
    texts = opened.rows(np.arange(opened.manifest["rows"])).to_pylist()
    return manifest, pq.read_table(pool / "index.parquet"), texts


@pytest.fixture
def source(tmp_path, rows, jsonl):
    return jsonl(tmp_path / "rows.jsonl", rows(count=400))


@pytest.mark.parametrize("of", [1, 3])
def test_shards_make_the_pool_that_is_built_in_one_go(tmp_path, source, of):
    build([source], tmp_path / "whole", TRUSTED)
    shards = []
    for number in range(of, 0, -1):
        shards.append(tmp_path / f"shard-{number}")
        build_shard([source], shards[-1], TRUSTED, Part(number, of))
    merge(shards, tmp_path / "merged")
    assert content(tmp_path / "merged") == content(tmp_path / "whole")


def test_a_pool_that_is_sorted_in_many_runs_and_ranges_is_the_same(tmp_path, source, monkeypatch):
    build([source], tmp_path / "whole", TRUSTED)
    monkeypatch.setattr(runs, "RUN_BYTES", 20_000)
    monkeypatch.setattr(runs, "RANGE_BYTES", 5_000)
    build([source], tmp_path / "small", TRUSTED)
    assert content(tmp_path / "small") == content(tmp_path / "whole")
    assert not list(tmp_path.glob(".*building"))


def test_a_build_leaves_the_collector_of_garbage_as_it_was(tmp_path, source):
    before = gc.get_threshold(), gc.get_freeze_count()
    build([source], tmp_path / "pool", TRUSTED)
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        build([source], tmp_path / "again", TRUSTED)
        assert gc.get_freeze_count() >= frozen > 0
    finally:
        gc.unfreeze()


def test_ids_used_twice_are_found_in_every_range_of_hashes(tmp_path, rows, jsonl, monkeypatch):
    monkeypatch.setattr(runs, "RANGE_BYTES", 500)
    some = rows(count=400)
    twice = some[:20]
    source = jsonl(tmp_path / "rows.jsonl", [*some, *twice])
    with pytest.raises(UsageError) as refused:
        build([source], tmp_path / "pool", TRUSTED)
    for number, row in enumerate(twice, len(some) + 1):
        assert f"rows.jsonl:{number}: the id {row['id']!r} was used at " in str(refused.value)


def test_two_processes_make_the_same_pool_and_name_the_same_faults(tmp_path, rows, jsonl):
    some = rows(count=600)
    source = jsonl(tmp_path / "rows.jsonl", some)
    build([source], tmp_path / "alone", TRUSTED)
    build([source], tmp_path / "two", replace(TRUSTED, processes=2))
    assert content(tmp_path / "two") == content(tmp_path / "alone")
    some[700]["quality"] = 9
    some[900]["n_tokens"] = None
    jsonl(source, some)
    said = r"2 bad rows:\n  .*rows\.jsonl:701: quality.*\n  .*rows\.jsonl:901: n_tokens"
    with pytest.raises(UsageError, match=said):
        build([source], tmp_path / "bad", replace(TRUSTED, processes=2))
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow  # two processes that each import transformers
def test_two_processes_count_as_one_does(tmp_path, tiny_model, rows, jsonl):
    some = [{k: v for k, v in row.items() if k != "n_tokens"} for row in rows(count=600)]
    source = jsonl(tmp_path / "rows.jsonl", some)
    options = BuildOptions(max_length=40, model=tiny_model)
    build([source], tmp_path / "alone", options)
    build([source], tmp_path / "two", replace(options, processes=2))
    assert content(tmp_path / "two") == content(tmp_path / "alone")


def test_an_id_that_stands_in_two_shards_or_buckets_is_named(tmp_path, rows, jsonl):
    some = rows(count=5)
    some[8]["id"] = some[1]["id"]
    source = jsonl(tmp_path / "rows.jsonl", some)
    for number in (1, 2):
        build_shard([source], tmp_path / str(number), TRUSTED, Part(number, 2))
    said = r"rows\.jsonl:9: the id 'a0001' was used at .*rows\.jsonl:2 already"
    with pytest.raises(UsageError, match=said):
        merge([tmp_path / "1", tmp_path / "2"], tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


def test_shards_that_do_not_make_one_pool_are_refused(tmp_path, source):
    for number in (1, 2):
        build_shard([source], tmp_path / str(number), TRUSTED, Part(number, 3))
    one, two, other = tmp_path / "1", tmp_path / "2", tmp_path / "other"
    build_shard([source], other, replace(TRUSTED, max_length=99), Part(3, 3))
    with pytest.raises(UsageError, match="other is not a shard of the same pool"):
        merge([one, two, other], tmp_path / "pool")
    with pytest.raises(UsageError, match="shard 3 of 3 is missing; shard 2 is given twice"):
        merge([one, two, two], tmp_path / "pool")
    (two / "shard.json").unlink()
    with pytest.raises(UsageError, match=r"2: not a shard, or one that is not finished"):
        merge([one, two, other], tmp_path / "pool")
    with pytest.raises(UsageError, match="is not empty"):
        build_shard([source], one, TRUSTED, Part(1, 3))


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "a/b", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=f"--shard {text}: write it as I/N"):
        Part.parse(text)


def test_a_selection_does_not_depend_on_how_the_index_is_cut(tmp_path, source, monkeypatch):
    build([source], tmp_path / "whole", TRUSTED)
    monkeypatch.setattr(pool_writer, "ROW_GROUP", 50)
    build([source], tmp_path / "cut", TRUSTED)
    whole, cut = Pool.open(tmp_path / "whole"), Pool.open(tmp_path / "cut")
    focus = Focus(include={"topic": ["t1"], "tags": ["h3"]}, exclude={"size": [7]}, share=0.4)
    for budget in (50, 900, 9000):
        mixture = Mixture(
            ratios={"a": 0.5, "b": 0.5}, focus={"a": focus}, budget=budget, seed=3, max_repeat=2
        )
        one, two = curate(whole, mixture), curate(cut, mixture)
        assert one.report == two.report
        assert one.rows.tolist() == two.rows.tolist()
    bucket = cut.buckets("a")["x"]
    for name in ("n_tokens", "attribute:topic", "attribute:tags", "attribute:size"):
        assert cut.column(name).tolist() == whole.column(name).tolist()
        assert cut.slice(name, bucket).tolist() == whole.slice(name, bucket).tolist()


def test_values_and_the_longest_row_are_those_of_the_quality_asked_for(small_pool, rows):
    for quality in (1, 3, 5, 6):
        kept = [r for r in rows() if r["quality"] >= quality]
        longest = max((r["n_tokens"] for r in kept), default=0)
        assert small_pool.longest(quality) == longest
        sizes = [float(r["attributes"]["size"]) for r in kept if r["dataset"] == "a"]
        values = small_pool.attribute_values(quality)["a"]
        assert values.get("size", []) == ([min(sizes), max(sizes)] if sizes else [])


def test_any_text_is_read_without_the_others(tmp_path):
    count = 3 * BLOCK_ROWS + 5
    ids = [f"r{number}" for number in range(count)]
    table = pa.table({"id": ids, "messages": [[{"role": "user", "content": i}] for i in ids]})
    writer = TextsWriter(tmp_path / "t.arrow", table.schema.field("messages").type)
    for start in range(0, count, 50):
        writer.write(table.slice(start, 50))
    writer.close()
    assert [i for b in every_text(tmp_path / "t.arrow") for i in b["id"].to_pylist()] == ids
    wanted = np.array([count - 1, 0, 70, 64, 0, 71])
    assert read_texts(tmp_path / "t.arrow", wanted)["id"].to_pylist() == [ids[n] for n in wanted]
    assert read_texts(tmp_path / "t.arrow", np.zeros(0, np.int64)).num_rows == 0


def old_pool(pool, folder):
    """The pool as version 1 wrote it: texts in Parquet, no values, no longest rows."""
    folder.mkdir()
    manifest = json.loads((pool.path / "pool.json").read_text())
    manifest["version"] = 1
    del manifest["values"]
    for buckets in manifest["datasets"].values():
        for entry in buckets.values():
            entry["stock"] = {q: cell[:2] for q, cell in entry["stock"].items()}
    pq.write_table(pq.read_table(pool.path / "index.parquet"), folder / "index.parquet")
    texts = pool.rows(np.arange(manifest["rows"]))
    pq.write_table(texts, folder / "rows.parquet", row_group_size=7)
    names = ("index.parquet", "rows.parquet")
    manifest["files"] = {name: file_facts(folder / name) for name in names}
    (folder / "pool.json").write_text(json.dumps(manifest))
    return folder


def test_a_pool_of_an_earlier_release_is_written_anew_as_it_would_be_built(tmp_path, small_pool):
    old = old_pool(small_pool, tmp_path / "old")
    with pytest.raises(UsageError, match="python -m mosaic pool upgrade"):
        Pool.open(old)
    upgrade(old, tmp_path / "new")
    assert content(tmp_path / "new") == content(small_pool.path)
    with pytest.raises(UsageError, match="has version 2"):
        upgrade(tmp_path / "new", tmp_path / "newer")
    with (old / "rows.parquet").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(UsageError, match=r"rows\.parquet is not the file that was built"):
        upgrade(old, tmp_path / "third")


def test_large_files_are_read_again_only_if_they_changed(tmp_path, source, monkeypatch):
    build([source], tmp_path / "pool", TRUSTED)
    monkeypatch.setattr(pool_files, "LARGE", 1)
    read = []
    monkeypatch.setattr(pool_files, "file_facts", lambda p: read.append(p.name) or file_facts(p))
    pool = Pool.open(tmp_path / "pool")
    pool.check()
    pool.check()
    assert read == [*FILES]
    pool.verify()
    assert read == [*FILES, *FILES]
    path = tmp_path / "pool" / "rows.arrow"
    stat, whole = path.stat(), path.read_bytes()
    path.write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])
    with pytest.raises(UsageError, match=r"rows\.arrow is not the file that was built"):
        pool.check()
    # Somebody who puts the time back is only found by reading all of it.
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    pool.check()
    with pytest.raises(UsageError, match=r"rows\.arrow is not the file that was built"):
        pool.verify()
