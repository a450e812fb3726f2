"""Policy optimisation for stated wishes: TRL's `RLOOTrainer` or `GRPOTrainer`, reward by levels.

    maximise  E[r(x, y)] - b KL(pi || pi_ref)

x is a chat whose system message states the levels that are wished for (`prompts.levels`), y an
answer drawn from the policy pi, r the reward of `training.methods.level_reward`, b the KL
coefficient. The reference pi_ref is where the policy begins: the base, or the adapter of the stage
before. The best policy is pi_ref exp(r / b) / Z (MOSLIM, arXiv 2505.20336).

RLOO (arXiv 2402.14740) takes n answers to a prompt; an answer's advantage is its reward less the
mean of the others', with the KL a part of the reward. Rewards of 1, 2 and 6 give advantages of
1 - 4 = -3, 2 - 3.5 = -1.5 and 6 - 1.5 = 4.5. GRPO (arXiv 2402.03300) divides the distance from
the mean by the standard deviation, and adds the KL to the loss.

The reward model reads the chat without the wish, and an answer that repeats a part of its wish
earns least: its words must not stand for what they ask.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from eval.rendering.ends import stop_ids
from eval.rendering.render import Chat, ChatError, plain_chat, texts_of
from eval.reward_model import RewardModel
from mosaic.core.errors import UsageError
from mosaic.core.types.base import canonical_json
from mosaic.core.types.data import WishedChat
from mosaic.core.types.recipes import RlRecipe
from mosaic.core.types.runs import (
    BASE,
    REWARD_MODEL,
    WISHED_CHATS,
    LoraRecipe,
    TrainJob,
    TrainResult,
    Workplace,
)
from prompts.levels import read_stated, repeats_wish
from training.methods import hf, sft
from training.methods.base import Progress, Stopping, never
from training.methods.checkpoints import last_checkpoint
from training.methods.failures import classify_failure
from training.methods.level_reward import RewardScale, check_wish, read_scale, reward
from training.methods.sft import template_of
from training.models.adapter import canonicalise
from training.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

POLICY = "default"
"""PEFT's name of the adapter that is trained. TRL keeps a second one, the reference."""
RECIPE = RlRecipe


Reward = Callable[[Sequence[Chat], Sequence[str]], list[float]]
"""(prompts with their wishes, an answer to each) -> rewards"""


@dataclass(frozen=True)
class Wished:
    """A chat as the reward model reads it, without the wish, and the levels that are rewarded."""

    chat: Chat
    levels: dict[str, int]


def without_wish(wished: WishedChat, objectives: Sequence[str]) -> Wished:
    """Split a chat from its wish. `objectives` are all that a wish can name.

    ValueError if the system message does not begin with a
    wish, or states nothing of an objective that is to be rewarded.
    """
    chat = plain_chat(wished.messages)
    stated, system = read_stated(chat[0]["content"], objectives)
    levels = stated
    if wished.objectives:
        unsaid = [name for name in wished.objectives if name not in stated]
        if unsaid:
            raise ValueError(f"the wish says nothing of {', '.join(unsaid)}")
        levels = {name: stated[name] for name in wished.objectives}
    rest = chat[1:]
    if system is not None:
        rest = [{"role": "system", "content": system}, *rest]
    return Wished(rest, levels)


@dataclass
class LevelReward:
    """The reward of answers by a reward model and its scale.

    An answer that the model cannot read is rewarded as one that has no requested level at all, and
    so is one that repeats a part of its wish: reward models that never saw such an answer may take
    it for what it says. `unrewarded` counts both by reason. `wished` is what `wishes` gives.
    """

    model: RewardModel
    scale: RewardScale
    wished: Mapping[str, Wished]
    unrewarded: Counter[str] = field(default_factory=Counter)

    def __call__(self, prompts: Sequence[Chat], answers: Sequence[str]) -> list[float]:
        wished = [self.wished[canonical_json(list(chat))] for chat in prompts]
        whole: list[Chat] = []
        for one, answer in zip(wished, answers, strict=True):
            whole.append([*one.chat, {"role": "assistant", "content": answer}])
        rewards = []
        readings = self.model.read(whole)
        for one, answer, reading in zip(wished, answers, readings, strict=True):
            probabilities: Mapping[str, Mapping[int, float]] = reading.probabilities
            reason = reading.reason
            if repeats_wish(answer, one.levels):
                reason = "it repeats its wish"
            if reason:
                self.unrewarded[reason] += 1
                probabilities = {name: {level: 0.0} for name, level in one.levels.items()}
            rewards.append(reward(probabilities, one.levels, self.scale))
        return rewards


def check_recipe(base: Path, recipe: LoraRecipe, template: Path | None = None) -> None:
    """As `training.methods.sft.check_recipe`; UsageError too for a template without system messages.

    A wish stands in one.
    """
    sft.check_recipe(base, recipe, template)
    asking: Chat = [{"role": "system", "content": "."}, {"role": "user", "content": "."}]
    reason = "it leaves them out"
    try:
        tokenizer = load_tokenizer(base, template)
        stated, silent = texts_of(tokenizer, [asking, asking[1:]], answer_next=True)
        if stated != silent:
            return
    except ChatError as error:
        reason = error.reason
    raise UsageError(
        f"methods.rl: the chat template of {base} takes no system message, in which a wish "
        f"stands: {reason}"
    )


def train(
    job: TrainJob, place: Workplace, progress: Progress | None = None, stopping: Stopping = never
) -> TrainResult:
    """Train one adapter for the wishes of its prompts, and save it at `place.out`.

    `tokens` counts every answer with its prompt, `sampled` every answer. Prompts that do not fill
    a last step are left out; last progress events say how many, and how many answers had no
    reward, by reason. Checkpoints, stopping and errors are those of
    `training.methods.sft.train`; UsageError too for a wish that the reward model cannot judge.
    """
    base = Path(place.paths[BASE])
    model = RewardModel(Path(place.paths[REWARD_MODEL]), base, template_of(job, place))
    if model.card.base != job.inputs[BASE]:
        raise UsageError(
            f"{model.folder}: the reward model was trained on another base; train one on this base"
        )
    scale = read_scale(model.folder)
    chats = read_chats(Path(place.paths[WISHED_CHATS]), scale)
    # Loading draws random numbers. Done later, a resumed training would go on with other ones.
    model.load()
    judged = LevelReward(model, scale, wishes(chats, scale))
    asked = [plain_chat(one.messages) for one in chats]
    result = optimise(job, place, asked, judged, progress, stopping)
    if progress:
        progress({"stage": "rewarded", "unrewarded": dict(judged.unrewarded)})
    return result


def wishes(chats: Sequence[WishedChat], scale: RewardScale) -> dict[str, Wished]:
    """What is rewarded of each chat, by its canonical JSON."""
    found = {}
    for one in chats:
        key = canonical_json(plain_chat(one.messages))
        found[key] = without_wish(one, scale.objectives)
    return found


def read_chats(path: Path, scale: RewardScale) -> list[WishedChat]:
    """The chats of a file. UsageError names the line of one that is broken or cannot be rewarded."""
    chats = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            wished = WishedChat.model_validate_json(line)
            check_wish(without_wish(wished, scale.objectives).levels, scale)
        except ValidationError as error:
            raise UsageError(f"{where}: {error.errors()[0]['msg']}") from None
        except (ValueError, UsageError) as error:
            raise UsageError(f"{where}: {error}") from None
        chats.append(wished)
    return chats


def optimise(
    job: TrainJob,
    place: Workplace,
    chats: Sequence[Chat],
    judge: Reward,
    progress: Progress | None = None,
    stopping: Stopping = never,
) -> TrainResult:
    """Train the policy on chats by any reward. See `train`."""
    with classify_failure(Path(place.work)):
        return _optimise(job, place, chats, judge, progress, stopping)


def _optimise(
    job: TrainJob,
    place: Workplace,
    chats: Sequence[Chat],
    judge: Reward,
    progress: Progress | None,
    stopping: Stopping,
) -> TrainResult:
    from transformers import set_seed

    hf.quiet()
    base, recipe = Path(place.paths[BASE]), job.recipe
    assert isinstance(recipe, RlRecipe)
    template = template_of(job, place)
    check_recipe(base, recipe, template)
    tokenizer = load_tokenizer(base, template)
    tokenizer.padding_side = "left"
    out = Path(place.out)
    if out.exists():
        raise UsageError(f"{out} exists already; an adapter is written to a new folder")
    lengths = prompt_lengths(tokenizer, chats, recipe)
    order = prompt_order(len(chats), recipe, job.seed)
    left_out = recipe.epochs * len(chats) - len(order)
    if not order:
        raise UsageError(
            f"{len(chats)} prompts do not fill one step of {recipe.prompts_per_step}; lower "
            "methods.rl.batch_size, or give more practice prompts"
        )

    set_seed(job.seed)
    stops = stop_ids(base, tokenizer)
    model = policy(job, place, stops)
    answers = Answers(judge, tokenizer, frozenset(stops))
    watch = hf.watching_callback(job, progress, stopping)
    started = time.monotonic()
    dataset = _dataset([chats[number] for number in order])
    trainer = make_trainer(job, place, model, tokenizer, dataset, answers, watch)
    output = trainer.train(resume_from_checkpoint=last_checkpoint(job, Path(place.work)))
    loss = hf.finish(trainer, watch, float(output.training_loss))
    trainer.model.save_pretrained(out, selected_adapters=[POLICY])
    canonicalise(out, job.inputs[BASE])
    if progress:
        progress({"stage": "saved", "left_out": left_out})
    trained = int(trainer.state.num_input_tokens_seen)
    sampled = trained - recipe.n * sum(lengths[number] for number in order)
    return TrainResult(
        adapter=str(out),
        tokens=trained,
        supervised=sampled,
        sampled=sampled,
        steps=int(trainer.state.global_step),
        loss=loss,
        seconds=time.monotonic() - started,
        train_seconds=float(output.metrics["train_runtime"]),
        real_token_share=answers.share,
    )


def prompt_lengths(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], recipe: RlRecipe
) -> list[int]:
    """Tokens of each prompt, up to where its answer begins, as generation reads it.

    Raises ChatError for one that the template refuses, UsageError for one that leaves no room for
    its answer within `max_length`.
    """
    texts = texts_of(tokenizer, chats, answer_next=True)
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    for number, length in enumerate(lengths):
        if length + recipe.max_new_tokens > recipe.max_length:
            raise UsageError(
                f"practice prompt {number} has {length} tokens; with methods.rl.max_new_tokens "
                f"({recipe.max_new_tokens}) that is more than methods.rl.max_length "
                f"({recipe.max_length})"
            )
    return lengths


def prompt_order(count: int, recipe: RlRecipe, seed: int) -> list[int]:
    """Which prompt each place of the training takes: every epoch in an order of its own.

    Whole steps only: what would not fill the last one is left out.

    >>> prompt_order(3, RlRecipe(batch_size=8, n=4, epochs=2), seed=1)  # two prompts a step
    [0, 1, 2, 2, 0, 1]
    """
    order: list[int] = []
    for epoch in range(recipe.epochs):
        order += np.random.default_rng(seed + epoch).permutation(count).tolist()
    steps = len(order) // recipe.prompts_per_step
    if recipe.max_steps is not None:
        steps = min(steps, recipe.max_steps)
    return order[: steps * recipe.prompts_per_step]


def policy(job: TrainJob, place: Workplace, stops: Sequence[int]) -> PreTrainedModel:
    """The base, with the adapter to start from if the job names one; it ends answers at `stops`."""
    from transformers import GenerationConfig

    model = hf.load_model(Path(place.paths[BASE]), job.recipe.dtype, hf.loading_of(job.recipe))
    # A folder's wishes for decoding are dropped, as they are where answers are measured.
    model.generation_config = GenerationConfig(eos_token_id=list(stops))
    return hf.continued(model, job, place)


def _dataset(chats: Sequence[Chat]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [list(chat) for chat in chats]})


@dataclass
class Answers:
    """TRL's reward function: token ids become the texts that measuring would see.

    `tokens` and `positions` count what this process drew: tokens of prompts and answers, and what
    they fill with their padding.
    """

    judge: Reward
    tokenizer: PreTrainedTokenizerBase
    stops: frozenset[int]
    tokens: int = 0
    positions: int = 0

    __name__ = "level_reward"

    @property
    def share(self) -> float:
        """Tokens over positions, 0-1; 1 if nothing was drawn, as after the last checkpoint."""
        return self.tokens / self.positions if self.positions else 1.0

    def __call__(
        self,
        prompts: Sequence[Chat],
        completions: Sequence[object],
        completion_ids: Sequence[Sequence[int]],
        **rest: object,
    ) -> list[float]:
        texts = texts_of(self.tokenizer, prompts, answer_next=True)
        asked = [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        said = [len(ids) for ids in completion_ids]
        self.tokens += sum(asked) + sum(said)
        self.positions += len(prompts) * (max(asked) + max(said))
        return self.judge(prompts, [self.text(ids) for ids in completion_ids])

    def text(self, ids: Sequence[int]) -> str:
        """What stands before the first end of turn."""
        kept = []
        for token in ids:
            if token in self.stops:
                break
            kept.append(token)
        return str(self.tokenizer.decode(kept, skip_special_tokens=True).strip())


def make_trainer(
    job: TrainJob,
    place: Workplace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    answers: Answers,
    callback: TrainerCallback,
) -> Any:
    """TRL's trainer for a job. The data set holds the prompts of all epochs in training order."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    recipe = job.recipe
    assert isinstance(recipe, RlRecipe)
    own: dict[str, object] = {}
    kinds: tuple[type, type] = (RLOOTrainer, RLOOConfig)
    if recipe.algorithm == "grpo":
        kinds = (GRPOTrainer, GRPOConfig)
        own = {"loss_type": "grpo"}  # the published one: a mean over the tokens of each answer
    trainer_class, config_class = kinds
    steps = len(dataset) // recipe.prompts_per_step
    settings = config_class(
        **hf.arguments(job, place, steps),
        **own,
        num_train_epochs=1,
        shuffle_dataset=False,
        num_generations=recipe.n,
        max_completion_length=recipe.max_new_tokens,
        temperature=recipe.temperature,
        beta=recipe.kl,
        disable_dropout=True,
        # Experts and routers are frozen, so their balance is left alone.
        router_aux_loss_coef=0.0,
    )
    fresh = None if job.start_from else hf.lora(Path(place.paths[BASE]), recipe)
    with hf.trackers(recipe.report_to):
        trainer = policy_only(trainer_class)(
            model=model,
            reward_funcs=answers,
            args=settings,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=fresh,
            callbacks=[callback],
        )
    hf.silence(trainer)
    return trainer


def policy_only(trainer: type[Any]) -> type[Any]:
    """A trainer of TRL whose checkpoints hold the trained adapter alone.

    A checkpoint with a second adapter is not read back as it was written: transformers then loads
    the adapters in its subfolders and leaves out the one beside them. The reference is made anew
    from where the job starts.
    """

    class PolicyTrainer(trainer):
        def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
            self.model.save_pretrained(output_dir, selected_adapters=[POLICY])

    return PolicyTrainer
