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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from eval.rendering.ends import stop_ids
from eval.rendering.render import Chat, texts_of
from eval.reward_model import RewardModel
from mosaic.core.errors import UsageError
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.data import Message
from mosaic.core.types.runs import (
    BASE,
    START,
    LoraRecipe,
    TrainJob,
    TrainResult,
    Usage,
    Workplace,
)
from prompts.levels import read_stated, repeats_wish
from training.methods import hf
from training.methods.base import Progress, Stopping, never
from training.methods.checkpoints import last_checkpoint
from training.methods.failures import classify_failure
from training.methods.level_reward import RewardScale, check_wish, reward
from training.methods.reward_model import read_scale
from training.methods.sft import check_recipe as check_recipe
from training.methods.sft import template_of
from training.models.adapter import canonicalise
from training.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

# The job's inputs: a file with a `WishedChat` a line, and a reward model's folder.
WISHED_CHATS, REWARD_MODEL = "wished_chats", "reward_model"
POLICY = "default"
"""PEFT's name of the adapter that is trained. TRL keeps a second one, the reference."""


class RlRecipe(LoraRecipe):
    """Policy optimisation of a LoRA adapter for levels that prompts ask for.

    `n` answers of at most `max_new_tokens` are drawn per prompt at `temperature`; `batch_size`
    counts answers, and a step takes whole groups of n. `kl` is the KL coefficient b: larger values
    hold the policy closer to where it began. A learning rate for LoRA.
    """

    trains_on: ClassVar[Literal["mixture", "practice"]] = "practice"

    kind: Literal["rl"] = "rl"
    learning_rate: float = Field(default=5e-5, gt=0)
    algorithm: Literal["rloo", "grpo"] = "rloo"
    kl: float = Field(default=0.05, ge=0)
    n: int = Field(default=4, ge=2, le=64)
    temperature: float = Field(default=1.0, gt=0, le=2)
    max_new_tokens: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _whole_groups(self) -> RlRecipe:
        answers = self.batch_size * self.gradient_accumulation
        if answers % self.n:
            raise ValueError(
                f"batch_size x gradient_accumulation is {answers} answers a step, which is not a "
                f"multiple of n ({self.n})"
            )
        if self.packing:
            raise ValueError("packing: sampled answers are never packed; leave it out")
        if self.lora_dropout:
            raise ValueError(
                "lora_dropout: answers are drawn and learned without dropout; set it to 0"
            )
        return self

    @property
    def prompts_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation // self.n

    def usage(self, selected: int) -> Usage:
        """What a stage of `selected` tokens takes; `worst_case` says which prompts fit."""
        return Usage(trained=selected)


RECIPE = RlRecipe


def worst_case(recipe: RlRecipe, lengths: Sequence[int]) -> Usage:
    """The most that training on prompts of these lengths (in tokens) can take.

    Every answer is drawn once, and trained on once with its prompt. Two prompts of 10 and 20
    tokens with n = 4 and answers of up to 8: 4 (10 + 20 + 2 x 8) = 184 trained, 64 sampled.

    >>> worst_case(RlRecipe(n=4, max_new_tokens=8), [10, 20]).cost
    248
    """
    drawn = recipe.n * recipe.epochs
    longest = len(lengths) * recipe.max_new_tokens
    return Usage(trained=drawn * (sum(lengths) + longest), sampled=drawn * longest)


class WishedChat(FrozenModel):
    """A chat up to the question to be answered. Its system message begins with a wish."""

    id: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=2)

    @model_validator(mode="after")
    def _asks(self) -> WishedChat:
        if self.messages[-1].role != "user":
            raise ValueError(f"{self.id}: the last message is not a question")
        if self.messages[0].role != "system":
            raise ValueError(f"{self.id}: no system message states a wish")
        return self

    @property
    def chat(self) -> Chat:
        return [{"role": m.role, "content": m.content} for m in self.messages]


@dataclass(frozen=True)
class Wished:
    """A chat as the reward model reads it, without the wish, and the levels that it asks for."""

    chat: Chat
    levels: dict[str, int]


Reward = Callable[[Sequence[Chat], Sequence[str]], list[float]]
"""(prompts with their wishes, an answer to each) -> rewards"""


def without_wish(chat: Chat, objectives: Sequence[str]) -> Wished:
    """Split a chat from its wish. ValueError if the system message does not begin with one."""
    levels, system = read_stated(chat[0]["content"], objectives)
    rest = chat[1:]
    if system is not None:
        rest = [{"role": "system", "content": system}, *rest]
    return Wished(rest, levels)


@dataclass
class LevelReward:
    """The reward of answers by a reward model and its scale.

    An answer that the model cannot read is rewarded as one that has no requested level at all, and
    so is one that repeats a part of its wish: reward models that never saw such an answer may take
    it for what it says. `unrewarded` counts both by reason.
    """

    model: RewardModel
    scale: RewardScale
    unrewarded: Counter[str] = field(default_factory=Counter)

    def __call__(self, prompts: Sequence[Chat], answers: Sequence[str]) -> list[float]:
        wished = [without_wish(chat, self.scale.objectives) for chat in prompts]
        chats: list[Chat] = []
        for one, answer in zip(wished, answers, strict=True):
            chats.append([*one.chat, {"role": "assistant", "content": answer}])
        rewards = []
        readings = self.model.read(chats)
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
    judged = LevelReward(model, scale)
    result = optimise(job, place, chats, judged, progress, stopping)
    if progress:
        progress({"stage": "rewarded", "unrewarded": dict(judged.unrewarded)})
    return result


def read_chats(path: Path, scale: RewardScale) -> list[Chat]:
    """The chats of a file. UsageError names the line of one that is broken or cannot be rewarded."""
    chats = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            wished = WishedChat.model_validate_json(line)
            check_wish(without_wish(wished.chat, scale.objectives).levels, scale)
        except ValidationError as error:
            raise UsageError(f"{where}: {error.errors()[0]['msg']}") from None
        except (ValueError, UsageError) as error:
            raise UsageError(f"{where}: {error}") from None
        chats.append(wished.chat)
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
    from peft import PeftModel
    from transformers import GenerationConfig

    model = hf.load_model(Path(place.paths[BASE]), job.recipe.dtype, hf.loading_of(job.recipe))
    # A folder's wishes for decoding are dropped, as they are where answers are measured.
    model.generation_config = GenerationConfig(eos_token_id=list(stops))
    if job.start_from is None:
        return model
    continued = PeftModel.from_pretrained(model, place.paths[START], is_trainable=True)
    # Filed adapters name their base by digest; PEFT looks for its vocabulary when it saves.
    continued.peft_config[POLICY].base_model_name_or_path = place.paths[BASE]
    return continued


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
        # Experts and routers are frozen: there is no balance of theirs to keep.
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
