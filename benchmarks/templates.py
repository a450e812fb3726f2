"""Base models by their chat templates: are the right tokens learnt, and does generation stop?

A tiny model of each shape is trained on the labels of three chats until it has them by heart, and
then asked: it must give the answers back and stop at the end that it was taught.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figures import Rows, figure, not_measured
from benchmarks.template_shapes import Shape, make_tokenizer, shapes
from eval.generators.base import TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.rendering.pins import pin
from eval.rendering.render import Chat, texts_of
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt
from training.models.chat_template import IGNORED, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTIONS = ("How long?", "Can I freeze it?", "yes and a box?")
ANSWERS = ("Keep it dry.", "7 days, in a box.\n\nNo more.", "yes and a box?")
# Enough steps and width to learn three short chats by heart.
STEPS, WIDTH = 90, 64


def chats_of(shape: Shape) -> list[Chat]:
    """One turn and three turns, with a system message too where the template takes one."""
    found = [chat_of(1), chat_of(3)]
    if shape.system:
        system = {"role": "system", "content": "Be brief, baker."}
        found += [[system, *chat] for chat in found]
    return found


def chat_of(turns: int) -> Chat:
    chat: Chat = []
    for question, answer in zip(QUESTIONS[:turns], ANSWERS[:turns], strict=True):
        chat.append({"role": "user", "content": question})
        chat.append({"role": "assistant", "content": answer})
    return chat


def wrong_labels(tokenizer: PreTrainedTokenizerBase, shape: Shape, chat: Chat) -> str | None:
    """What is wrong with the labels of a chat, by decoding them; None if nothing is."""
    ((ids,), (labels,)) = tokenise(tokenizer, [chat])
    answers = [m["content"] for m in chat if m["role"] == "assistant"]
    segments: list[list[int]] = []
    before = IGNORED
    for label in labels:
        if label != IGNORED and before == IGNORED:
            segments.append([])
        if label != IGNORED:
            segments[-1].append(label)
        before = label
    if len(segments) != len(answers):
        return f"{len(segments)} runs of labels for {len(answers)} answers"
    end = tokenizer.convert_tokens_to_ids(shape.end or shape.eos)
    for segment, answer in zip(segments, answers, strict=True):
        if segment[-1] != end:
            return f"a turn ends in {tokenizer.decode(segment[-1:])!r}"
        if tokenizer.decode(segment[:-1]).strip() != answer.strip():
            return f"{tokenizer.decode(segment[:-1])!r} is learnt for {answer!r}"
    (prompt,) = texts_of(tokenizer, [chat[:-1]], answer_next=True)
    given = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    last = len(labels) - labels[::-1].index(end) - len(segments[-1])
    return None if ids[:last] == list(given) else "the last answer follows another prompt"


def memorise(tokenizer: PreTrainedTokenizerBase, chats: list[Chat], folder: Path) -> None:
    """Train a tiny model on the labels of chats, and save it as a folder.

    Its config names the tokenizer's eos as its only end, as many published folders do.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ids, labels = tokenise(tokenizer, chats)
    for _ in range(STEPS):
        optimiser.zero_grad()
        for row, label in zip(ids, labels, strict=True):
            loss = model(input_ids=torch.tensor([row]), labels=torch.tensor([label])).loss
            loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def not_stopped(tokenizer: PreTrainedTokenizerBase, shape: Shape) -> str | None:
    """What a trained model answers instead of what it was taught; None if it does as taught."""
    # Each answer is the last one of a chat: some templates render earlier ones otherwise than they
    # are generated.
    learnt = [chat_of(1), chat_of(2), chat_of(3)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memorise(tokenizer, learnt, folder)
        (folder / "chat_template.jinja").write_text(shape.template)
        prompts = []
        for chat in learnt:
            turns = [m["content"] for m in chat if m["role"] == "user"]
            prompts.append(Prompt(id=f"p{len(turns)}", slice="all", weight=1, turns=turns))
        generator = TransformersGenerator(folder, TransformersGeneratorConfig(max_new_tokens=32))
        responses = generator.generate(prompts, None)
    for chat, response in zip(learnt, responses, strict=True):
        if set(response.finish_reasons) != {"stop"}:
            return f"an answer runs on: {response.answers[-1]!r}"
        taught = [m["content"] for m in chat if m["role"] == "assistant"]
        if response.answers != taught:
            return f"{response.answers} for {taught}"
    return None


def templates(quick: bool) -> Rows:
    """Labels for one-turn and three-turn chats, and generation that stops, by shape.

    With `quick` only every third shape is trained.
    """
    labelled = stopped = trained = chats = 0
    missed: Rows = []
    for number, shape in enumerate(shapes()):
        tokenizer = make_tokenizer(shape)
        pin(tokenizer)
        for chat in chats_of(shape):
            chats += 1
            try:
                wrong = wrong_labels(tokenizer, shape, chat)
            except UsageError as error:
                wrong = str(error)
            labelled += wrong is None
            if wrong:
                missed.append(not_measured(f"{shape.name}: {wrong}", met=False))
        if quick and number % 3:
            continue
        trained += 1
        wrong = not_stopped(tokenizer, shape)
        stopped += wrong is None
        if wrong:
            missed.append(not_measured(f"{shape.name}: {wrong}", met=False))
    return [
        figure("chats labelled right", 100 * labelled / chats, f"% of {chats}", at_least=100),
        figure("bases that stop", 100 * stopped / trained, f"% of {trained}", at_least=100),
        *missed,
    ]
