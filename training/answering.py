"""Answers drawn by a worker: the same contract as a training, and what is handed back is text.

A worker keeps the base that it has loaded for its next shard, and gives it back before it trains.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from eval.generators.base import TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.model_loading import Loading, free_memory
from mosaic.core.errors import StopRequested
from mosaic.core.types.base import FrozenModel, JsonObject, canonical_json
from mosaic.core.types.evaluation import Prompt
from mosaic.core.types.runs import BASE, START, TEMPLATE, Sampling, Workplace
from training.methods.base import Progress, Stopping

# The file of a result, in the folder that a job writes.
ANSWERS = "answers.json"


class AnswerJob(FrozenModel):
    """Everything that decides what a shard of answers is: the same job draws the same answers.

    `base` is the digest of base and chat template. `settings` are those of the generator, as the
    key of a step names them. `adapter` is a digest, None the base itself. `prompts` are answered,
    `texts` are read for their likelihood.
    """

    base: str
    settings: JsonObject
    adapter: str | None
    sampling: Sampling
    prompts: list[Prompt] = []
    texts: list[str] = []


class AnswerResult(FrozenModel):
    """What an answering hands back beside its file: how many prompts or texts that covers.

    `seconds` is how long it took, loading the model included and waiting for a worker not.
    """

    answered: int
    seconds: float


class _Held:
    """The generator that this process has loaded, and what it was loaded for."""

    def __init__(self) -> None:
        self.loaded_for = ""
        self.generator: TransformersGenerator | None = None

    def of(self, job: AnswerJob, place: Workplace) -> TransformersGenerator:
        """The generator that a job asks for: the one at hand, or another in its place."""
        template = place.paths.get(TEMPLATE)
        wanted = canonical_json([job.base, place.paths[BASE], template, job.settings])
        if self.generator is None or self.loaded_for != wanted:
            self.close()
            self.generator = _open_generator(job, place)
            self.loaded_for = wanted
        return self.generator

    def close(self) -> None:
        """Give the memory of the model back."""
        if self.generator is not None:
            self.generator.close()
            self.generator = None
            free_memory()


_held = _Held()


def answer(
    job: AnswerJob, place: Workplace, progress: Progress, stopping: Stopping
) -> AnswerResult:
    """Draw the answers of a job, and write them into a file of `place.out`.

    The file holds a list: a response for each answer, or for each text `[mean, tokens]`
    (`TextLikelihood`). Raises StopRequested between two batches if `stopping` says so.
    """

    def tell(done: int, total: int) -> None:
        progress({"answered": done, "of": total})
        if stopping():
            raise StopRequested("answering was asked to stop")

    began = time.monotonic()
    generator = _held.of(job, place)
    progress({"answered": 0, "of": len(job.prompts) + len(job.texts)})
    generator.progress = tell
    adapter = Path(place.paths[START]) if job.adapter is not None else None
    lines: list[object] = []
    if job.prompts:
        responses = generator.generate(job.prompts, adapter, job.sampling)
        lines += [response.json_data() for response in responses]
    if job.texts:
        likelihoods = generator.log_likelihood(job.texts, adapter)
        lines += [[each.mean, each.tokens] for each in likelihoods]
    out = Path(place.out)
    out.mkdir(parents=True)
    (out / ANSWERS).write_text(json.dumps(lines))
    answered = len(job.prompts) + len(job.texts)
    return AnswerResult(answered=answered, seconds=time.monotonic() - began)


def release() -> None:
    """Give back the model that answered: a training needs the memory."""
    _held.close()


def _open_generator(job: AnswerJob, place: Workplace) -> TransformersGenerator:
    """The generator that the settings of a job describe."""
    known = TransformersGeneratorConfig.model_fields
    chosen = {name: value for name, value in job.settings.items() if name in known}
    attention = job.settings.get("attn_implementation")
    loading = Loading(
        attention=attention if isinstance(attention, str) else None,
        four_bit=job.settings.get("load_in_4bit") is True,
    )
    template = place.paths.get(TEMPLATE)
    return TransformersGenerator(
        Path(place.paths[BASE]),
        TransformersGeneratorConfig.model_validate(chosen),
        template=Path(template) if template is not None else None,
        loading=loading,
    )
