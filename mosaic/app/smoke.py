"""Two training steps and eight prompts: what only trying can tell, before a run costs anything."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from agent.observe import static_plan
from eval.generators.base import Generator
from mosaic.app.bases import base_folder
from mosaic.app.config import RunConfig
from mosaic.app.estimate import KnownSpeeds
from mosaic.app.runs import RUNS
from mosaic.app.shapes import Finding
from mosaic.app.wiring import Inputs, build_executor, build_smoke_generator
from mosaic.core.store import file_digest
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.runs import BASE, TEMPLATE, TRAINING_SET, LoraRecipe, TrainJob, Workplace
from tools.effects.train import template_input
from training.data.curate import Curated, curate, mixture_of, write_training_set
from training.methods.base import never
from training.methods.batches import largest_batch

PROMPTS = 8


def answer_prompts(
    generator: Generator, prompts: list[Prompt], texts: list[str], adapter: Path
) -> list[Response]:
    """Answers of a freshly trained adapter, by a generator that also reads `texts`."""
    try:
        if texts:
            generator.log_likelihood(texts, adapter)
        return generator.generate(prompts, adapter)
    finally:
        generator.close()


def smoke_test(
    config: RunConfig,
    inputs: Inputs,
    serve: bool,
    runs: Path = RUNS,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Finding, KnownSpeeds]:
    """Two training steps on the largest batch to come, and eight prompts; how fast the steps were.

    `runs` is the folder of the run directories: what other machines train lies beside these, on the
    storage that they share. Training runs in the config's executor. A batch that does not fit into memory fails here, not
    hours into the first round. The second step is the larger one: the optimiser then has its
    moments. A vLLM server is started only with `serve`: the start of a run leaves that to round 0,
    which comes next and costs no training either. `say` is told what may keep a training waiting.
    """
    curated = first_training_set(config, inputs)
    lengths = curated.n_tokens.tolist()
    largest = largest_batch(lengths, config.recipe)
    base = base_folder(config.base_model)
    elsewhere = config.executor.kind in ("ray", "slurm")
    if elsewhere:
        runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="smoke-", dir=runs.resolve() if elsewhere else None, ignore_cleanup_errors=True
    ) as folder:
        path = Path(folder) / "training_set.parquet"
        write_training_set(inputs.pool, curated.part(largest), path)
        job = TrainJob(
            recipe=_two_steps(config.recipe, len(largest)),
            inputs={
                BASE: inputs.base_digest,
                TRAINING_SET: file_digest(path),
                **template_input(config.template),
            },
            seed=config.seed,
        )
        paths = {BASE: str(base), TRAINING_SET: str(path)}
        if config.template is not None:
            paths[TEMPLATE] = str(config.template)
        place = Workplace(
            paths=paths,
            out=str(Path(folder) / "adapter"),
            work=str(Path(folder) / "work"),
        )
        executor = build_executor(config, Path(folder), say)
        (done,) = executor.wait([executor.submit(job, place)], never)
        prompts, texts = _few_prompts(inputs), _longest_texts(inputs)
        generator = build_smoke_generator(
            config, Path(folder), serve, PROMPTS, executor, inputs.base_digest
        )
        answers = answer_prompts(generator, prompts, texts, Path(done.adapter))
    speed = done.tokens / done.train_seconds if done.train_seconds else None
    trained = f"loss {done.loss:.3f} after {done.steps} steps on the largest batch"
    finding = Finding(check="smoke", result=f"{trained}, {len(answers)} prompts answered")
    return finding, KnownSpeeds(training=speed)


def first_training_set(config: RunConfig, inputs: Inputs) -> Curated:
    """The rows of the pools' own mixture at the full budget that a plan can give it."""
    plan = static_plan(inputs.pool, config.settings())
    tokens = config.budget.tokens_per_round
    mixture = mixture_of(plan, tokens, config.seed, config.limits)
    return curate(inputs.pool, mixture)


def _two_steps(recipe: LoraRecipe, rows: int) -> LoraRecipe:
    """The recipe, but for two steps on one micro-batch that holds all rows of the training set.

    With packing the rows make as many packs as a micro-batch has.
    """
    changes: dict[str, object] = {
        "epochs": 2,
        "max_steps": 2,
        "gradient_accumulation": 1,
        "save_every": None,
        "report_to": "none",
    }
    if not recipe.packing:
        changes["batch_size"] = max(1, rows)
    return recipe.model_copy(update=changes)


def _few_prompts(inputs: Inputs) -> list[Prompt]:
    """About eight prompts, the first ones of the steering suite of each objective of answers."""
    answered = [n for n, o in inputs.objectives.items() if o.evidence == "answers"]
    few: list[Prompt] = []
    for name in answered:
        few += inputs.suites[name]["steering"].prompts[: max(1, PROMPTS // len(answered))]
    return few


def _longest_texts(inputs: Inputs) -> list[str]:
    """The longest text of each objective that reads likelihoods: one that does not fit fails here."""
    longest = []
    suites = inputs.all_suites
    for name, objective in inputs.all_objectives.items():
        if objective.evidence == "likelihood":
            prompts = [p for suite in suites[name].values() for p in suite.prompts]
            longest.append(max((p.turns[0] for p in prompts), key=len))
    return longest
