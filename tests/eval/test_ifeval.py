import os
import subprocess
import sys

import pytest

from eval import ifeval


def constraint(identifier, **params):
    return {"id": identifier, "params": params}


def test_importing_prints_nothing_and_downloads_nothing():
    code = "from eval import ifeval; ifeval.checker_ids()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=".")
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_strict_and_loose():
    title = constraint("detectable_format:title")
    assert ifeval.check([title], "<<a title>>\ntext") == ([True], [True])
    quoted = constraint("startend:quotation")
    assert ifeval.check([quoted], 'Sure!\n"all of it"') == ([False], [True])
    assert ifeval.check([title, quoted], "") == ([False, False], [False, False])


@pytest.mark.parametrize(
    "bad",
    [
        constraint("keywords:existence"),
        constraint("keywords:existence", keywords=None),
        constraint("startend:quotation", what=1),
        constraint("no:such"),
        {"params": {}},
    ],
)
def test_what_would_be_drawn_at_random_is_refused(bad):
    assert ifeval.verifiable(bad)
    with pytest.raises(ValueError, match=r"."):
        ifeval.check([bad], "text")


def test_every_checker_is_deterministic():
    import random

    params = {
        "keywords:existence": {"keywords": ["bread"]},
        "keywords:frequency": {"keyword": "bread", "frequency": 2, "relation": "at least"},
        "length_constraints:number_words": {"num_words": 3, "relation": "at least"},
        "language:response_language": {"language": "en"},
    }
    text = "the bread is old , and the bread is good ."
    seen = set()
    for seed in range(3):
        random.seed(seed)
        seen.add(tuple(tuple(r) for i, p in params.items() for r in ifeval.check([constraint(i, **p)], text)))
    assert len(seen) == 1
