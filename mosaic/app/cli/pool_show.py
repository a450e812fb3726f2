"""`pool show`: rows as the model sees them, with what is learnt marked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from mosaic.app.cli.options import Json, Template
from mosaic.app.terminal import emit, safe, safe_lines, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from eval.rendering.turns import TokenisedChat

FEW = 3
LEARNT, PLAIN = "\x1b[1;32m", "\x1b[0m"
OPEN, CLOSE = "⟦", "⟧"


class Piece(TypedDict):
    """Neighbouring tokens that are all learnt, or all not."""

    learnt: bool
    text: str
    tokens: list[str]
    ids: list[int]


class Shown(TypedDict):
    """A row as `--json` gives it."""

    id: str
    tokens: int
    learnt: int
    pieces: list[Piece]


def show_rows(
    pool: Annotated[Path, typer.Argument(help="A pool folder.")],
    model: Annotated[
        Path, typer.Option("--model", help="Base model: a folder or org/name@revision.")
    ],
    rows: Annotated[
        list[str] | None, typer.Argument(help="Ids of rows; some if none is given.")
    ] = None,
    template: Template = None,
    as_json: Json = False,
) -> None:
    """Show rows as the model sees them: what is learnt in colour, or between ⟦ and ⟧."""
    from eval.rendering.turns import TurnEncoder
    from mosaic.app.base_check import check_base
    from mosaic.app.bases import base_folder
    from training.data.pool import Pool
    from training.data.pool_sample import named_rows, some_rows
    from training.models.chat_template import ChatError, turn_shape
    from training.models.tokenizer import TokenCounter, load_tokenizer

    opened = Pool.open(pool)
    chosen = named_rows(opened, rows) if rows else some_rows(opened, FEW)
    base = base_folder(str(model))
    check_base(base, template)
    counted = opened.manifest.get("tokenizer")
    if counted and counted != TokenCounter(base, template).digest:
        say("the pool's tokens were counted with another tokenizer or chat template than this one")
    tokenizer = load_tokenizer(base, template)
    encoder = TurnEncoder(tokenizer, turn_shape(tokenizer))
    shown: list[Shown] = []
    for row in chosen:
        try:
            (chat,) = encoder.encode([row["messages"]])
        except ChatError as error:
            say(f"{row['id']}: {error.reason}")
            continue
        shown.append(_shown(row["id"], chat, tokenizer))
    if as_json:
        emit(shown)
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for one in shown:
        print(f"{safe(one['id'])}: {one['learnt']} of {one['tokens']} tokens are learnt")
        print("".join(_marked(piece, colour) for piece in one["pieces"]) + "\n")


def _shown(identifier: str, chat: TokenisedChat, tokenizer: PreTrainedTokenizerBase) -> Shown:
    """A row cut where learning begins and ends."""
    pieces: list[Piece] = []
    learnt = 0
    position = 0
    for start, end in chat.answers:
        pieces.append(_piece(tokenizer, chat.ids[position:start], learnt=False))
        pieces.append(_piece(tokenizer, chat.ids[start:end], learnt=True))
        learnt += end - start
        position = end
    pieces.append(_piece(tokenizer, chat.ids[position:], learnt=False))
    kept = [piece for piece in pieces if piece["ids"]]
    return {"id": identifier, "tokens": len(chat.ids), "learnt": learnt, "pieces": kept}


def _piece(tokenizer: PreTrainedTokenizerBase, ids: list[int], learnt: bool) -> Piece:
    return {
        "learnt": learnt,
        "text": tokenizer.decode(ids, skip_special_tokens=False),
        "tokens": tokenizer.convert_ids_to_tokens(ids),
        "ids": ids,
    }


def _marked(piece: Piece, colour: bool) -> str:
    """A piece for the terminal."""
    text = safe_lines(piece["text"])
    if not piece["learnt"]:
        return text
    return f"{LEARNT}{text}{PLAIN}" if colour else f"{OPEN}{text}{CLOSE}"
