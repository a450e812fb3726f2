"""Chat templates in the shapes that published base models have, and tiny tokenizers for them.

Written here after the shape, or read from TRL's package where that ships them. A tokenizer has the
control tokens of its shape and splits text as one of three families does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

Family = Literal["bytes", "words", "pieces"]
TEXTS = [
    "How do I store bread? Keep it dry, in a box.\n\nYes.\n",
    "Can I freeze it? 7 days, no more than that. (No) yes: bread and a dry box.",
    "You are a careful baker. Be brief. How long?\n\n assistant: user: [INST] [/INST]",
]
# How texts are split before merges: as tokenizers of Llama 3, Qwen and their kin do.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Shape:
    """A base model by its template. `system` says whether a system message is taken.

    `end` is the token that ends a turn, where it is not the eos. With `swallows` control tokens take
    in the white space that follows them.
    """

    name: str
    template: str
    control: tuple[str, ...]
    eos: str
    bos: str | None = None
    family: Family = "words"
    system: bool = True
    end: str = ""
    swallows: bool = False


def shipped(name: str) -> str:
    """A template of TRL's package."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful baker.<|im_end|>\\n' }}{% endif %}"
    + CHATML.removeprefix("{% for m in messages %}")
)
ALTERNATION = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
)
FOLDED = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
)
LLAMA2 = (
    FOLDED + "{% for m in rest %}" + ALTERNATION + "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' "
    "if system and loop.first else '') + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_1 = (
    FOLDED + "{{ bos_token }}{% for m in rest %}" + ALTERNATION + "{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (system + '\\n\\n' if system and loop.first else '') + m['content'] "
    "+ ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_3 = MISTRAL_1.replace("' [/INST]'", "'[/INST]'")
# The system message stands before the last question, wherever the chat is.
MISTRAL_TEKKEN = (
    FOLDED + "{{ bos_token }}{% for m in rest %}" + ALTERNATION + "{% if m['role'] == 'user' %}"
    "{{ '[INST]' + (system + '\\n\\n' if system and loop.index0 >= rest | length - 2 and "
    "(loop.last or rest[loop.index0 + 1]['role'] == 'assistant') else '') + m['content'] "
    "+ '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' + '\\n' }}{% endif %}"
    "{% endfor %}"
)
TULU = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + m['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% else %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '\\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<｜User｜>' + m['content'] }}{% elif m['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m['content'] + '<｜end▁of▁sentence｜>' }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
GRANITE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}"
    "{% set system = 'Today is ' + strftime_now('%B %d, %Y') + '. You are a baker.' %}"
    "{% set rest = messages %}{% endif %}"
    "{{ '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}"
    "{% for m in rest %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] "
    "+ '<|end_of_text|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
INST = ("<s>", "</s>", "[INST]", "[/INST]")
PHI = ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
COMMAND = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>")
COMMAND_ROLES = ("<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
SEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
ROLES = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")


def shapes() -> list[Shape]:
    """Every shape. Those whose text TRL ships are read from there."""
    begin, end, turn = "<|begin_of_text|>", "<|eot_id|>", "<end_of_turn>"
    return [
        Shape("Llama 3", shipped("llama3"), HEADERS, end, begin),
        Shape("Llama 3.1", shipped("llama3_1"), HEADERS, end, begin),
        Shape("Llama 3.2", shipped("llama3_2"), HEADERS, end, begin),
        Shape("Qwen2.5", shipped("qwen2_5"), IM, "<|im_end|>"),
        Shape("Qwen3", shipped("qwen3"), IM, "<|im_end|>"),
        Shape("Qwen3 2507", shipped("qwen3_instruct_2507"), IM, "<|im_end|>"),
        Shape("Gemma 2", shipped("gemma"), TURNS, "<eos>", "<bos>", "pieces", False, turn),
        Shape("Gemma 3", shipped("gemma3"), TURNS, "<eos>", "<bos>", "pieces", True, turn),
        Shape("Mistral v1", MISTRAL_1, ("<s>", "</s>"), "</s>", "<s>", "pieces"),
        Shape("Mistral v3", MISTRAL_3, INST, "</s>", "<s>", "pieces"),
        Shape("Mistral tekken", MISTRAL_TEKKEN, INST, "</s>", "<s>"),
        Shape(
            "Phi-3.5",
            shipped("phi3_5"),
            PHI,
            "<|endoftext|>",
            None,
            "pieces",
            True,
            "<|end|>",
            True,
        ),
        Shape("SmolLM2", SMOLLM2, IM, "<|im_end|>", family="bytes"),
        Shape("ChatML", CHATML, IM, "<|im_end|>", family="bytes"),
        Shape("Zephyr", ZEPHYR, ("<s>", "</s>"), "</s>", "<s>", "pieces"),
        Shape("Llama 2", LLAMA2, ("<s>", "</s>"), "</s>", "<s>", "pieces"),
        Shape("DeepSeek", DEEPSEEK, SEEK, "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
        Shape(
            "Command R",
            shipped("cohere"),
            (*COMMAND, *COMMAND_ROLES),
            "<|END_OF_TURN_TOKEN|>",
            "<BOS_TOKEN>",
            "bytes",
        ),
        Shape("Granite", GRANITE, ROLES, "<|end_of_text|>", family="bytes"),
        Shape("Tulu and OLMo", TULU, ("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>"),
        Shape("Vicuna", VICUNA, ("<s>", "</s>"), "</s>", "<s>", "pieces"),
    ]


def make_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """The tiny tokenizer of a shape, with its template."""
    from tokenizers import Tokenizer
    from transformers import AddedToken, PreTrainedTokenizerFast

    trained = {"pieces": _pieces, "words": _words, "bytes": _bytes}[shape.family]()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained), eos_token=shape.eos, bos_token=shape.bos
    )
    control = []
    for token in shape.control:
        control.append(AddedToken(token, special=True, normalized=False, rstrip=shape.swallows))
    fast.add_tokens(control)
    fast.chat_template = shape.template
    return fast


@cache
def _bytes() -> str:
    """Byte-level BPE, as GPT-2's."""
    from tokenizers.pre_tokenizers import ByteLevel

    return _byte_level(ByteLevel(add_prefix_space=False))


@cache
def _words() -> str:
    """Byte-level BPE over the words of `SPLIT`, as that of Llama 3 and Qwen."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    level = ByteLevel(add_prefix_space=False, use_regex=False)
    return _byte_level(Sequence([Split(Regex(SPLIT), "isolated"), level]))


def _byte_level(splitter: PreTokenizer) -> str:
    from tokenizers import Tokenizer, decoders, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return str(tokenizer.to_str())


@cache
def _pieces() -> str:
    """Pieces that begin with a space and fall back to bytes, as those of Llama 2 and Mistral."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    # Training needs words; their tokenizers put the spaces in while they normalise.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = None
    # Bytes are ordinary tokens.
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] == "<unk>"]
    return json.dumps(data)
