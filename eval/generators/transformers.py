"""Generation in process by transformers: batched, left-padded, length-sorted greedy decoding.

The base model is loaded once. An adapter is merged into a copy of it for the time of one call, which decodes faster
than separate LoRA layers and leaves the base untouched. Multi-turn prompts are replayed turn by turn: call k sees k
user turns and the model's own k-1 answers.
"""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.generators.base import TransformersGeneratorConfig
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt, Response

Chat = list[dict[str, str]]


class TransformersGenerator:
    """Answers with a Hugging Face model folder on the local device."""

    def __init__(
        self,
        base_model: Path,
        config: TransformersGeneratorConfig,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.base_model = base_model
        self.config = config
        self.progress = progress

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        check_model_folder(self.base_model)
        tokenizer = AutoTokenizer.from_pretrained(self.base_model, local_files_only=True)
        if not tokenizer.chat_template:
            raise UsageError(
                f"{self.base_model}: the tokenizer has no chat template, so chats cannot be rendered"
            )
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _base(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging

        check_model_folder(self.base_model)
        logging.disable_progress_bar()
        dtype = getattr(torch, self.config.dtype)
        model = AutoModelForCausalLM.from_pretrained(
            self.base_model, dtype=dtype, local_files_only=True
        )
        # Of what the folder wants for decoding only its ends of turns count: a penalty on repetition is not greedy.
        model.generation_config = GenerationConfig(
            eos_token_id=model.generation_config.eos_token_id
        )
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def _model(self, adapter: Path | None) -> Any:
        """The base, or a copy of it with an adapter merged in. BoundaryError-free: a misfit raises from PEFT."""
        if adapter is None:
            return self._base
        from peft import PeftModel

        return (
            PeftModel.from_pretrained(copy.deepcopy(self._base), adapter).merge_and_unload().eval()
        )

    def generate(self, prompts: Sequence[Prompt], adapter: Path | None) -> list[Response]:
        model = self._model(adapter)
        chats: list[Chat] = [
            [{"role": "system", "content": p.system}] if p.system else [] for p in prompts
        ]
        answers: list[list[str]] = [[] for _ in prompts]
        reasons: list[list[Any]] = [[] for _ in prompts]
        tokens = [0] * len(prompts)
        total, done = sum(len(p.turns) for p in prompts), 0
        for turn in range(max((len(p.turns) for p in prompts), default=0)):
            open_ = [i for i, p in enumerate(prompts) if turn < len(p.turns)]
            for i in open_:
                chats[i].append({"role": "user", "content": prompts[i].turns[turn]})
            encoded = self._encode([chats[i] for i in open_])
            for batch in self._batches(encoded):
                for position, (text, reason, count) in zip(
                    batch, self._decode(model, [encoded[p] for p in batch]), strict=True
                ):
                    i = open_[position]
                    chats[i].append({"role": "assistant", "content": text})
                    answers[i].append(text)
                    reasons[i].append(reason)
                    tokens[i] += count
                done += len(batch)
                if self.progress:
                    self.progress(done, total)
        return [
            Response(id=p.id, answers=a, finish_reasons=r, n_tokens=n)
            for p, a, r, n in zip(prompts, answers, reasons, tokens, strict=True)
        ]

    def _encode(self, chats: list[Chat]) -> list[list[int]]:
        texts = self._tokenizer.apply_chat_template(
            chats, tokenize=False, add_generation_prompt=True
        )
        return [list(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def _batches(self, encoded: list[list[int]]) -> list[list[int]]:
        """Positions in batches of similar length, longest first; ties by position, so that the order is fixed."""
        order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), i))
        size = self.config.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _decode(self, model: Any, batch: list[list[int]]) -> list[tuple[str, str, int]]:
        """(text, finish reason, new tokens) per prompt."""
        import torch

        tokenizer = self._tokenizer
        padded = tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(model.device)
        stops = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)} - {None}
        with torch.inference_mode():
            output = model.generate(
                **padded,
                do_sample=False,
                num_beams=1,
                max_new_tokens=self.config.max_new_tokens,
                eos_token_id=sorted(stops),
                pad_token_id=tokenizer.pad_token_id,
            )
        results = []
        for row in output[:, padded["input_ids"].shape[1] :].tolist():
            end = next((k for k, token in enumerate(row) if token in stops), None)
            kept = row if end is None else row[:end]
            text = tokenizer.decode(kept, skip_special_tokens=True).strip()
            results.append(
                (text, "length" if end is None else "stop", len(kept) + (end is not None))
            )
        return results

    def log_likelihood(self, texts: Sequence[str], adapter: Path | None) -> list[float]:
        import torch

        model, tokenizer = self._model(adapter), self._tokenizer
        values = []
        with torch.inference_mode():
            for text in texts:
                ids = tokenizer(text, return_tensors="pt", add_special_tokens=True)["input_ids"].to(
                    model.device
                )
                if ids.shape[1] < 2:
                    raise UsageError(
                        f"{text[:40]!r} is a single token; a likelihood needs at least two"
                    )
                logits = model(input_ids=ids).logits[0, :-1].float()
                chosen = torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])
                values.append(float(chosen.mean()))
        return values

    def release(self) -> None:
        """Nothing to give back: training in this process shares the device with the base anyway."""

    def close(self) -> None:
        """Give back the model's memory: a server or a training may need it next."""
        if self.__dict__.pop("_base", None) is not None:
            import torch

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def check_model_folder(folder: Path) -> None:
    """UsageError where a folder is no model folder or asks for code of its own."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder}: no readable config.json ({error}); give a Hugging Face model folder"
        ) from None
    tokenizer = folder / "tokenizer_config.json"
    try:
        second = json.loads(tokenizer.read_text()) if tokenizer.is_file() else {}
    except ValueError as error:
        raise UsageError(f"{tokenizer}: not readable as JSON ({error})") from None
    for name, found in (("config.json", config), ("tokenizer_config.json", second)):
        if not isinstance(found, dict):
            raise UsageError(
                f"{folder}: {name} is no JSON object; give a Hugging Face model folder"
            )
        if "auto_map" in found:
            raise UsageError(
                f"{folder}: {name} asks for remote code (auto_map), which is never run; use a plain model"
            )


def _as_list(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]
