"""The laboratory's base model from nothing: a BPE tokenizer and a small Llama, trained on the corpus on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

VOCABULARY = 1024
WIDTH, LAYERS, HEADS, INNER = 192, 4, 6, 512
BLOCK, BATCH = 256, 16
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 3e-3, 0.05, 0.05
STEPS = 700
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>")
TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}<|assistant|>{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{%- else -%}<|{{ m.role }}|>{{ m.content }}<|end|>{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)

Chat = list[dict[str, str]]


def make_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE tokenizer with the chat template, trained on texts."""
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


def pretrain(
    tokenizer: Any,
    chats: list[Chat],
    seed: int,
    steps: int = STEPS,
    say: Callable[[str], None] = lambda text: None,
) -> Any:
    """Next-token training on the chats, joined and cut into blocks; the same bytes on the same CPU type and versions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    stream = [
        token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids
    ]
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
        share = step / steps
        rate = min(1.0, (step + 1) / (WARMUP * steps)) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * max(rate, 0.02)
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
            say(f"pre-training step {step + 1} of {steps}, loss {loss.item():.3f}")
    return model


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """An ordinary Hugging Face folder, weights in bfloat16."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.to(torch.bfloat16)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
