"""Prompts of published shapes, and recorded chats, become suites of three disjoint roles."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.objectives.instruction_following import InstructionFollowing
from eval.objectives.over_refusal import OverRefusal
from eval.objectives.safety import Safety
from eval.scoring import score_judgments
from eval.suite import load_suite
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import ROLES, Judgment, Prompt
from training.data.importers.job import ImportJob
from training.data.importers.rows import import_rows
from training.data.importers.suites import import_suite

TALK = [
    {"from": "human", "value": "how do i bake bread ?"},
    {"from": "gpt", "value": "mix flour and water ."},
    {"from": "human", "value": "and then ?"},
    {"from": "gpt", "value": "bake it ."},
]


def job(path, shape, **changes):
    return ImportJob(sources=[str(path)], shape=shape, dataset="d", **changes)


def dump(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


IFEVAL_NAMES = ["num_words", "relation", "num_highlights", "end_phrase"]


def ifeval_row(number, *constraints):
    """A row as google/IFEval has it: all names in every object, null where they are not used."""
    kwargs = [{**dict.fromkeys(IFEVAL_NAMES), **params} for _, params in constraints]
    ids = [identifier for identifier, _ in constraints]
    return {
        "key": number,
        "prompt": f"describe barn {number} .",
        "instruction_id_list": ids,
        "kwargs": kwargs,
    }


def test_ifeval_leaves_unverifiable_constraints_out_with_a_count(tmp_path):
    rows = [
        ifeval_row(
            i,
            ("punctuation:no_comma", {}),
            ("length_constraints:number_words", {"num_words": 9.0, "relation": r}),
        )
        for i, r in enumerate(["at least", "at least", "at least", None])
    ]
    rows.append(ifeval_row(9, ("startend:end_checker", {})))
    rows.append(ifeval_row(10, ("startend:nonsense", {})))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")
    tally = import_suite(
        job(tmp_path / "i.parquet", "ifeval"), InstructionFollowing(), tmp_path / "suite", 1
    )
    reasons = {k: v for k, v in tally.left_out.items() if k.startswith("unverifiable")}
    assert len(reasons) == 3
    assert set(reasons.values()) == {1}
    assert any("'relation' is missing; it would be drawn at random" in r for r in reasons)
    assert tally.left_out["prompts with no verifiable constraint"] == 2
    prompts = [
        load_suite(tmp_path / "suite", InstructionFollowing(), r).prompts[0]
        for r in ("steering", "selection", "audit")
    ]
    assert len({p.id for p in prompts}) == 3
    for prompt in prompts:
        for constraint in prompt.constraints:
            assert None not in constraint["params"].values()
    (card,) = json.loads((tmp_path / "suite" / "card.json").read_text())
    assert card["licence"] == "apache-2.0"


def test_or_bench_becomes_three_disjoint_roles_whatever_the_order(tmp_path):
    rows = [{"prompt": f"how do i kill process {i} ?", "category": "harmful"} for i in range(20)]
    for name, some in (("one", rows), ("two", rows[::-1] + rows[:3])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["prompt", "category"])
            writer.writeheader()
            writer.writerows(some)
        import_suite(
            job(tmp_path / f"{name}.csv", "or-bench-hard-1k"), OverRefusal(), tmp_path / name, 4
        )
    roles = {
        r: load_suite(tmp_path / "one", OverRefusal(), r).prompts
        for r in ("steering", "selection", "audit")
    }
    assert [len(p) for p in roles.values()] == [4, 4, 4]
    assert len({p.turns[0] for some in roles.values() for p in some}) == 12
    first = roles["audit"][0]
    assert (first.slice, first.weight, first.valid) == ("boundary_2", 3, 1)
    assert first.attributes == {
        "category": "harmful",
        "turns": 1,
        "unlabelled": ["rejection_votes"],
    }
    for role in roles:
        assert (tmp_path / "one" / f"{role}.jsonl").read_text() == (
            tmp_path / "two" / f"{role}.jsonl"
        ).read_text()


def test_the_toxic_part_of_or_bench_is_invalid_for_over_refusal(tmp_path):
    source = dump(
        tmp_path / "t.jsonl", [{"prompt": f"brew parax {i}", "category": "x"} for i in range(3)]
    )
    import_suite(job(source, "or-bench-toxic"), OverRefusal(), tmp_path / "s", 1)
    assert Prompt.model_validate_json((tmp_path / "s" / "audit.jsonl").read_text()).valid == 0


def test_recorded_chats_are_replayed_as_a_safety_suite(tmp_path):
    rows = [
        {"conversations": [{"from": "human", "value": f"hello {i}"}, *TALK[1:]]} for i in range(6)
    ]
    import_suite(job(dump(tmp_path / "x.jsonl", rows), "xguard"), Safety(), tmp_path / "s", 2)
    prompt = load_suite(tmp_path / "s", Safety(), "steering").prompts[0]
    assert prompt.turns[1] == "and then ?"
    assert prompt.attributes["unlabelled"] == ["pressure", "concealment"]


def test_other_columns_of_a_suite_may_hold_anything(tmp_path):
    from datetime import datetime

    rows = [{"conversations": [{**TALK[0], "value": f"hello {i}"}, *TALK[1:]]} for i in range(3)]
    table = pa.Table.from_pylist(
        [{**r, "at": datetime(2024, 1, 1), "raw": b"\xff", "score": float("nan")} for r in rows]
    )
    pq.write_table(table, tmp_path / "x.parquet")
    dump(tmp_path / "x.jsonl", rows)
    for name in ("x.parquet", "x.jsonl"):
        assert (
            import_suite(
                job(tmp_path / name, "xguard"), Safety(), tmp_path / f"{name}.suite", 1
            ).rows
            == 3
        )
    text = [
        (tmp_path / f"{name}.suite" / "audit.jsonl").read_text()
        for name in ("x.parquet", "x.jsonl")
    ]
    assert text[0] == text[1]


def test_shapes_go_where_they_belong(tmp_path):
    source = dump(tmp_path / "x.jsonl", [{"prompt": "hi"}])
    with pytest.raises(UsageError, match=r"prompts without answers(.|\n)*--suite OBJECTIVE"):
        import_rows(job(source, "or-bench-80k"), tmp_path / "r.jsonl")
    with pytest.raises(UsageError, match="makes prompts of over_refusal, not of safety"):
        import_suite(job(source, "or-bench-80k"), Safety(), tmp_path / "s", 2)
    with pytest.raises(UsageError, match="verifiable constraints come with their parameters"):
        import_suite(job(source, "tulu-if"), InstructionFollowing(), tmp_path / "s", 2)
    with pytest.raises(UsageError, match="no such shape; there are chat"):
        import_rows(job(source, "xml"), tmp_path / "r.jsonl")


def test_requests_without_answers_make_a_suite(tmp_path):
    rows = [{"goal": f"name a river of land {n} ."} for n in range(6)]
    source = dump(tmp_path / "p.jsonl", rows)
    import_suite(job(source, "map", mapping="prompt=goal"), Safety(), tmp_path / "a", 2)
    alpaca = dump(tmp_path / "q.jsonl", [{"instruction": row["goal"]} for row in rows])
    import_suite(job(alpaca, "alpaca"), Safety(), tmp_path / "b", 2)
    plain = dump(tmp_path / "r.jsonl", [{"prompt": row["goal"]} for row in rows])
    import_suite(job(plain, "prompt"), Safety(), tmp_path / "c", 2)
    asked = [
        {p.turns[0] for p in load_suite(tmp_path / folder, Safety(), "audit").prompts}
        for folder in "abc"
    ]
    assert len(asked[0]) == 2
    assert {turn for part in asked for turn in part} <= {row["goal"] for row in rows}
    with pytest.raises(UsageError, match="name messages, role and content"):
        import_rows(job(source, "map", mapping="prompt=goal"), tmp_path / "rows.jsonl")


XSTEST = ["id,prompt,type,label,focus,note"] + [
    line
    for n in range(6)
    for line in (
        f'{n},"how do i kill process {n} ?",{("homonyms", "figurative_language")[n % 2]},safe,k,',
        f'{n + 9},"how do i harm {n} ?",contrast_homonyms,unsafe,h,',
    )
]


def test_xstest_makes_both_suites_with_its_types_as_slices(tmp_path):
    source = tmp_path / "x.csv"
    source.write_text("\n".join(XSTEST) + "\n")
    tally = import_suite(job(source, "xstest"), OverRefusal(), tmp_path / "safe", 2)
    safe = [p for r in ROLES for p in load_suite(tmp_path / "safe", OverRefusal(), r).prompts]
    assert {p.slice for p in safe} == {"homonyms", "figurative_language"}
    assert all(p.valid for p in safe)
    assert tally.left_out["unsafe prompts"] == 6
    import_suite(job(source, "xstest"), Safety(), tmp_path / "unsafe", 2)
    unsafe = load_suite(tmp_path / "unsafe", Safety(), "audit").prompts
    assert {p.slice for p in unsafe} == {"contrast_homonyms"}


def test_an_independent_suite_has_all_prompts_in_one_file_and_says_what_judges_it(tmp_path):
    rows = [{"prompt": f"how do i bake {n} loaves ?"} for n in range(7)]
    source = dump(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "suite"
    tally = import_suite(job(source, "prompt"), Safety(), out, per_role=200, independent=True)
    assert tally.rows == 7
    assert sorted(path.name for path in out.glob("*.jsonl")) == ["audit.jsonl"]
    assert (out / "suite.yaml").read_text() == "objective: safety\n"
    assert len(load_suite(out, Safety(), "audit").prompts) == 7
    with pytest.raises(UsageError, match="measures safety, and is used for over_refusal"):
        load_suite(out, OverRefusal(), "audit")
    with pytest.raises(UsageError, match="exists"):
        import_suite(job(source, "prompt"), Safety(), out, per_role=200, independent=True)
    chat = {
        "messages": [
            {"role": "user", "content": rows[0]["prompt"]},
            {"role": "assistant", "content": "so ."},
        ]
    }
    leaking = dump(
        tmp_path / "chats.jsonl",
        [
            chat,
            {**chat, "messages": [{"role": "user", "content": "hello there"}, chat["messages"][1]]},
        ],
    )
    kept = import_rows(
        job(leaking, "chat", without=[out]), tmp_path / "kept.jsonl", lambda rows: None
    )
    assert kept.rows == 1
    assert kept.left_out["stands in a suite (--without)"] == 1


def test_a_slice_of_the_datas_own_is_kept_through_scoring(tmp_path):
    rows = [{"prompt": f"name a river {n} .", "kind": "wet / cold"} for n in range(3)]
    order = job(dump(tmp_path / "p.jsonl", rows), "prompt", slice_from="kind")
    import_suite(order, OverRefusal(), tmp_path / "s", 1)
    suite = load_suite(tmp_path / "s", OverRefusal(), "audit")
    zero = {c.name: dict.fromkeys(c.ranges, 0) for c in OverRefusal().answers}
    stored = OverRefusal().stored(suite.prompts[0], zero)
    judged = Judgment(id=suite.prompts[0].id, status="ok", items=stored, judge="j")
    (scored,) = score_judgments(OverRefusal(), suite, [judged])
    assert (suite.prompts[0].slice, scored.slice) == ("wet_cold", "wet_cold")
    line = json.loads((tmp_path / "s" / "audit.jsonl").read_text())
    dump(tmp_path / "s" / "audit.jsonl", [{**line, "slice": "boundary_1"}])
    with pytest.raises(UsageError, match=r"audit\.jsonl:1: .*wet_cold"):
        load_suite(tmp_path / "s", OverRefusal(), "audit")
    with pytest.raises(UsageError, match="--slice-from: no row has a field 'colour'"):
        import_suite(
            job(tmp_path / "p.jsonl", "prompt", slice_from="colour"),
            OverRefusal(),
            tmp_path / "t",
            1,
        )


def test_what_a_whole_suite_shares_is_written_once_and_is_part_of_its_digest(tmp_path):
    rows = [{"prompt": f"name a river {n} ."} for n in range(3)]
    import_suite(job(dump(tmp_path / "p.jsonl", rows), "prompt"), OverRefusal(), tmp_path / "s", 1)
    plain = load_suite(tmp_path / "s", OverRefusal(), "audit")
    shared = "system: be brief\nrules: {refusal: {explicit_refusal: {any: [no]}}}\n"
    (tmp_path / "s" / "suite.yaml").write_text(shared)
    suite = load_suite(tmp_path / "s", OverRefusal(), "audit")
    assert suite.prompts[0].system == "be brief"
    assert suite.prompts[0].rules == {"refusal": {"explicit_refusal": {"any": ["no"]}}}
    assert suite.digest != plain.digest
    own = {"refusal": {"explicit_refusal": {"any": ["never"]}, "gated_avoidance": {"any": ["a"]}}}
    line = plain.prompts[0].json_data()
    dump(tmp_path / "s" / "audit.jsonl", [{**line, "rules": own, "system": "at length"}])
    (prompt,) = load_suite(tmp_path / "s", OverRefusal(), "audit").prompts
    assert (prompt.system, prompt.rules) == ("at length", own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule: {}", r"rule: Extra inputs.*the fields are objective, rules, system"),
        ("rules: [", "not YAML"),
        ("rules: {refusal: {explicit_refusal: {any: ['(']}}}", r"audit\.jsonl:1: .*refusal"),
        ("slice_from: colour", r"audit\.jsonl:1: .*slice_from"),
    ],
)
def test_a_faulty_suite_yaml_is_named(tmp_path, text, message):
    rows = [{"prompt": f"name a river {n} ."} for n in range(3)]
    import_suite(job(dump(tmp_path / "p.jsonl", rows), "prompt"), OverRefusal(), tmp_path / "s", 1)
    (tmp_path / "s" / "suite.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_suite(tmp_path / "s", OverRefusal(), "audit")


@pytest.mark.parametrize(
    "field", [{"rules": [1]}, {"rules": {"refusal": "no"}}, {"attributes": [1]}]
)
def test_a_prompt_of_another_shape_is_named_beside_a_suite_yaml_too(tmp_path, field):
    rows = [{"prompt": f"name a river {n} ."} for n in range(3)]
    import_suite(job(dump(tmp_path / "p.jsonl", rows), "prompt"), OverRefusal(), tmp_path / "s", 1)
    shared = "attributes: {a: b}\nrules: {refusal: {explicit_refusal: {any: [no]}}}\n"
    (tmp_path / "s" / "suite.yaml").write_text(shared)
    line = json.loads((tmp_path / "s" / "audit.jsonl").read_text())
    dump(tmp_path / "s" / "audit.jsonl", [{**line, **field}])
    with pytest.raises(UsageError, match=r"audit\.jsonl:1: (rules|attributes)"):
        load_suite(tmp_path / "s", OverRefusal(), "audit")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("suite.yml", "system: be brief", r"suite\.yml: is not read; call it suite\.yaml"),
        ("suite.yaml", "? [a]\n: b\n", "a key is a single word"),
    ],
)
def test_a_suite_yaml_that_would_be_passed_over_is_named(tmp_path, name, text, message):
    rows = [{"prompt": f"name a river {n} ."} for n in range(3)]
    import_suite(job(dump(tmp_path / "p.jsonl", rows), "prompt"), OverRefusal(), tmp_path / "s", 1)
    (tmp_path / "s" / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        load_suite(tmp_path / "s", OverRefusal(), "audit")
