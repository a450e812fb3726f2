"""The laboratory's base model from nothing: a BPE tokenizer and a small Llama, trained on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 1024
WIDTH, LAYERS, HEADS, INNER = 192, 4, 6, 512
BLOCK, BATCH = 256, 16
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.05
# The share of the steps in which the learning rate rises, and the least share of it that any step
# trains with.
WARMUP, LEAST_RATE = 0.05, 0.02
STEPS = 500
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>")
TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}"
    "<|assistant|>{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{%- else -%}<|{{ m.role }}|>{{ m.content }}<|end|>{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)

Chat = list[dict[str, str]]
# The role of the only message of a plain text, which is not put into the template.
TEXT = "text"


def contents(chats: Iterable[Chat]) -> Iterator[str]:
    """The text of every message."""
    for chat in chats:
        for message in chat:
            yield message["content"]


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the chat template, trained on these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def learning_rate(step: int, steps: int) -> float:
    """The learning rate of a step (from 0): it rises in a line, then falls along half a cosine.

    rate = 0.003 * max(0.02, min(1, (step + 1) / (0.05 * steps)) * (1 + cos(pi * step / steps)) /
    2)

    Of 100 steps the first five warm up. Half way the cosine halves the rate. The last ones keep 2
    %.

    >>> [round(learning_rate(step, 100), 6) for step in (0, 4, 50, 99)]
    [0.0006, 0.002988, 0.0015, 6e-05]
    """
    warmup = min(1.0, (step + 1) / (WARMUP * steps))
    share = warmup * 0.5 * (1 + math.cos(math.pi * (step / steps)))
    return LEARNING_RATE * max(share, LEAST_RATE)


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    chats: list[Chat],
    seed: int,
    steps: int = STEPS,
    progress: Callable[[str], None] = lambda text: None,
) -> LlamaForCausalLM:
    """A model trained on the next tokens of the chats, which are joined and cut into blocks.

    The same seed gives the same bytes on the same type of CPU with the same versions of the
    packages.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    texts = [_rendered(tokenizer, chat) for chat in chats]
    stream: list[int] = []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        stream += ids
    count = len(stream) // BLOCK
    blocks = torch.tensor(stream[: count * BLOCK]).view(count, BLOCK)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        betas=(0.9, 0.95),
        fused=True,
    )
    order = torch.randperm(count)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps)
        at = (step * BATCH) % count
        rows = blocks[order[torch.arange(at, at + BATCH) % count]]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=rows).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == steps - 1:
            progress(f"pre-training step {step + 1} of {steps}, loss {loss.item():.3f}")
    return model


def _rendered(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> str:
    """A chat in the template; a text as it is, up to its end."""
    if chat[0]["role"] == TEXT:
        return f"{chat[0]['content']}{tokenizer.eos_token}"
    return str(tokenizer.apply_chat_template(chat, tokenize=False))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary Hugging Face folder, with the weights in bfloat16."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.to(torch.bfloat16)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
