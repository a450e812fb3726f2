"""Every container gives the same rows; what cannot be read is named by its place."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.core.errors import UsageError
from training.data.importers.containers import BadRow, read


def dump(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_every_container_gives_the_same_rows(tmp_path):
    import datasets

    rows = [{"prompt": f"say {i}\nnow", "category": "c"} for i in range(5)]
    dump(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    dump(tmp_path / "lines.json", rows)
    with (tmp_path / "c.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "category"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "disk")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(
        tmp_path / "splits"
    )
    for name in ("a.jsonl", "b.json", "lines.json", "c.csv", "d.parquet", "disk", "splits"):
        assert [row for _, row in read(str(tmp_path / name))] == rows, name
    assert next(iter(read(str(tmp_path / "c.csv"))))[0].endswith("c.csv:2")
    assert [place for place, _ in read(str(tmp_path / "c.csv"))][1].endswith("c.csv:4")
    with pytest.raises(UsageError, match="no split 'test'; it has train"):
        list(read(str(tmp_path / "splits"), split="test"))


def test_a_large_array_streams_and_keeps_its_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.importers.json_rows.BUFFER", 64)
    rows = [{"n": i, "text": "x" * (i % 90), "list": [i, {"deep": "[}"}]} for i in range(200)]
    text = json.dumps(rows, indent=1)
    (tmp_path / "a.json").write_text(text)
    found = list(read(str(tmp_path / "a.json")))
    assert [row for _, row in found] == rows
    for number in (0, 1, 100, 199):
        line = (
            next(i for i, t in enumerate(text.splitlines(), start=2) if t == f'  "n": {number},')
            - 2
        )
        assert found[number][0].endswith(f"a.json:{line}")
    (tmp_path / "b.json").write_text(json.dumps(rows)[:-40])
    *_, (place, last) = read(str(tmp_path / "b.json"))
    assert isinstance(last, BadRow)
    assert place.endswith("b.json:1")


@pytest.mark.parametrize(
    ("text", "rows", "reason"),
    [
        ('[{"n": 1}] [{"n": 2}]', 1, "nothing more is expected here, not '['"),
        ('[{"n": 1}]\ngarbage', 1, "nothing more is expected here, not 'g'"),
        ('[{"n": 1} {"n": 2}]', 1, "a comma or the array's end is expected here, not '{'"),
        ('[{"n": 1},, {"n": 2}]', 1, "what follows cannot be read"),
        ('[, {"n": 1}]', 0, "what follows cannot be read"),
        ('[{"n": 1},]', 1, "what follows cannot be read"),
        ('[{"n": 1},', 1, "the array has no end"),
    ],
)
def test_only_a_whole_array_is_read_to_its_end(tmp_path, text, rows, reason):
    (tmp_path / "a.json").write_text(text)
    *good, (_, last) = read(str(tmp_path / "a.json"))
    assert len(good) == rows
    assert reason in last.reason


@pytest.mark.parametrize("text", ["[]", " [ ] \n", '[{"n": 1}]\n', '[\n{"n": 1}\n,{"n": 1}]'])
def test_an_array_may_have_white_space_and_a_byte_order_mark(tmp_path, text):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.json").write_text(text, encoding=encoding)
        assert [row for _, row in read(str(tmp_path / "a.json"))] == json.loads(text)


def test_a_blank_line_of_a_table_and_a_byte_order_mark_of_lines_are_passed_over(tmp_path):
    (tmp_path / "a.csv").write_text("prompt\n\nhi\n\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "hi"}\n', encoding="utf-8-sig")
    (tmp_path / "c.json").write_text('{"prompt": "hi"}\n', encoding="utf-8-sig")
    for name in ("a.csv", "b.jsonl", "c.json"):
        assert [row for _, row in read(str(tmp_path / name))] == [{"prompt": "hi"}]


def test_a_datasets_folder_with_a_script_or_a_cut_file_is_refused(tmp_path):
    import datasets

    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("raise SystemExit\n")
    datasets.Dataset.from_list([{"n": i} for i in range(999)]).save_to_disk(tmp_path / "cut")
    (arrow,) = (tmp_path / "cut").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:200])
    for name in ("scripted", "cut"):
        with pytest.raises(UsageError, match=name):
            list(read(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", "no such file"),
        ("hub:owner/name", "hub:owner/name@REVISION"),
        ("hub:owner/name@0123abc", "cannot load it(.|\n)*HF_HUB_OFFLINE"),
    ],
)
def test_a_source_that_cannot_be_read_says_what_to_do(source, message):
    with pytest.raises(UsageError, match=message):
        list(read(source))
