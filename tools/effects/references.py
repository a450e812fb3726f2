"""Reference answers for steering prompts that came without: of what was judged, the best and the worst.

They are taken from the base and the calibration, which later rounds do not change, so that a run has
one set of references and its steering losses can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.steering_loss import Judged, judged_references
from eval.suite import Suite
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Prompt, Response, Scored, SuiteFiles
from mosaic.core.types.runs import Trial

# Objective -> its steering prompts with the references that there are.
References = dict[str, list[Prompt]]


def with_judged(store: Store, suites: Mapping[str, Suite], trials: Sequence[Trial]) -> References:
    """The prompts of the steering suites, those without references with what `trials` answered."""
    found: References = {}
    for name, suite in suites.items():
        if all(prompt.good and prompt.bad for prompt in suite.prompts):
            found[name] = suite.prompts
            continue
        judged = [_judged(store, trial.files[name]["steering"]) for trial in trials]
        found[name] = judged_references(suite.prompts, judged)
    return found


def _judged(store: Store, files: SuiteFiles) -> Judged:
    """Prompt -> its answers and their score, for every answer that has a score and counts."""
    scores = {}
    for line in store.get_json(files.scored):
        scored = Scored.model_validate(line)
        if scored.score is not None and scored.valid:
            scores[scored.id] = scored.score
    found = {}
    for line in store.get_json(files.responses):
        response = Response.model_validate(line)
        if response.answers and response.id in scores:
            found[response.id] = (response.answers, scores[response.id])
    return found
