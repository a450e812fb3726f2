"""Generation in this process by transformers: in batches, left-padded, sorted by length.

The base model is loaded once. An adapter is merged into a copy of it for the time of one call,
which decodes faster than separate LoRA layers and leaves the base untouched. Prompts of several
turns are replayed turn by turn: call k sees k user turns and the model's own k-1 answers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from eval.generators.base import TextLikelihood, TransformersGeneratorConfig
from eval.generators.conversations import Chat, Turn, open_conversations
from eval.generators.draws import DrawnTokens
from eval.model_folder import check_model_folder
from eval.model_loading import PLAIN, Loading, free_memory, load_base, quantised
from eval.rendering.ends import stop_ids
from eval.rendering.render import texts_of
from eval.rendering.tokenizer import load_tokenizer
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.runs import GREEDY, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersGenerator:
    """Answers with a Hugging Face model folder on the local device.

    `template` is a file that replaces the folder's chat template.
    """

    def __init__(
        self,
        base_model: Path,
        config: TransformersGeneratorConfig,
        progress: Callable[[int, int], None] | None = None,
        template: Path | None = None,
        loading: Loading = PLAIN,
    ) -> None:
        self.base_model = base_model
        self.config = config
        self.progress = progress
        self.template = template
        self.loading = loading

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(self.base_model, self.template)
        tokenizer.padding_side = "left"
        return tokenizer

    @cached_property
    def _stops(self) -> set[int]:
        """Tokens that end an answer."""
        return set(stop_ids(self.base_model, self._tokenizer))

    @cached_property
    def _base(self) -> PreTrainedModel:
        import torch
        from transformers import GenerationConfig
        from transformers.utils import logging

        check_model_folder(self.base_model)
        logging.disable_progress_bar()
        model = load_base(self.base_model, self.config.dtype, self.loading)
        # A folder's wishes for decoding are dropped: a repetition penalty is not greedy.
        model.generation_config = GenerationConfig(eos_token_id=sorted(self._stops))
        if quantised(self.base_model, self.loading):
            return model.eval()  # it was quantised where it stays
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def _model(self, adapter: Path | None) -> PreTrainedModel:
        """The base, or a copy of it with an adapter merged in.

        Beside weights in 4 bits the adapter stays apart: merged, it would be rounded to 4 bits.
        PEFT's own error if the two do not fit.
        """
        if adapter is None:
            return self._base
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(copy.deepcopy(self._base), adapter)
        if quantised(self.base_model, self.loading):
            return adapted.eval()
        return adapted.merge_and_unload().eval()

    def generate(
        self, prompts: Sequence[Prompt], adapter: Path | None, sampling: Sampling = GREEDY
    ) -> list[Response]:
        """See `Generator`.

        Drawn answers follow from the model, the chat, `sampling` and the prompt's id. They do not
        depend on the batch size, on the order of the prompts or on n, up to rounding: a batch of
        another shape changes logits in their last digits, and a draw that falls between two tokens
        so closely may change with them.
        """
        model = self._model(adapter)
        conversations = open_conversations(prompts, sampling.n)
        total, done = sum(len(c.prompt.turns) for c in conversations), 0
        for turn in range(max((len(p.turns) for p in prompts), default=0)):
            waiting = [c for c in conversations if turn < len(c.prompt.turns)]
            seeds = [c.next_question().seed(sampling) for c in waiting]
            encoded = self._encode([c.chat for c in waiting])
            for batch in self._batches(encoded):
                answers = self._decode(
                    model, [encoded[i] for i in batch], [seeds[i] for i in batch], sampling
                )
                for i, answer in zip(batch, answers, strict=True):
                    waiting[i].add(answer)
                done += len(batch)
                if self.progress:
                    self.progress(done, total)
        return [c.response() for c in conversations]

    def _encode(self, chats: list[Chat]) -> list[list[int]]:
        texts = texts_of(self._tokenizer, chats, answer_next=True)
        return [list(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def _batches(self, encoded: list[list[int]]) -> list[list[int]]:
        """Positions in batches of similar length, longest first; ties in the order of positions."""
        order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), i))
        size = self.config.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _decode(
        self,
        model: PreTrainedModel,
        batch: list[list[int]],
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> list[Turn]:
        """One answer per row of token ids. Row i draws with `seeds[i]`, unless sampling is greedy."""
        import torch

        tokenizer = self._tokenizer
        padded = tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(model.device)
        length = padded["input_ids"].shape[1]
        stops = self._stops
        draws = []
        if not sampling.greedy:
            draws.append(DrawnTokens(seeds, length, self.config.max_new_tokens, sampling))
        with torch.inference_mode():
            output = model.generate(
                **padded,
                do_sample=False,
                num_beams=1,
                max_new_tokens=self.config.max_new_tokens,
                eos_token_id=sorted(stops),
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=draws,
            )
        return [self._turn(row, stops) for row in output[:, length:].tolist()]

    def _turn(self, tokens: list[int], stops: set[int]) -> Turn:
        """The answer in a row of new tokens: what stands before the first end of turn."""
        end = next((k for k, token in enumerate(tokens) if token in stops), None)
        kept = tokens if end is None else tokens[:end]
        text = self._tokenizer.decode(kept, skip_special_tokens=True).strip()
        if end is None:
            return Turn(text, "length", len(kept))
        return Turn(text, "stop", len(kept) + 1)

    def log_likelihood(self, texts: Sequence[str], adapter: Path | None) -> list[TextLikelihood]:
        """See `Generator`."""
        import torch

        model, tokenizer = self._model(adapter), self._tokenizer
        most = getattr(model.config, "max_position_embeddings", None)
        values = []
        with torch.inference_mode():
            for text in texts:
                encoded = tokenizer(text, return_tensors="pt", add_special_tokens=True)
                ids = encoded["input_ids"].to(model.device)
                if ids.shape[1] < 2:
                    raise UsageError(
                        f"{text[:40]!r} is a single token; a likelihood needs at least two"
                    )
                if most is not None and ids.shape[1] > most:
                    raise UsageError(
                        f"{text[:40]!r}... has {ids.shape[1]} tokens, and the model reads {most}; "
                        "split the text"
                    )
                logits = model(input_ids=ids).logits[0, :-1].float()
                chosen = torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])
                values.append(TextLikelihood(float(chosen.mean()), chosen.shape[0]))
                if self.progress:
                    self.progress(len(values), len(texts))
        return values

    def release(self) -> None:
        """Nothing to give back: training in this process shares the device with the base anyway."""

    def close(self) -> None:
        """Give back the model's memory: a server or a training may need it next."""
        if self.__dict__.pop("_base", None) is not None:
            free_memory()
