"""The tokenizer of a model folder, with the one chat template that everything is rendered by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eval.model_folder import check_model_folder, stop_token_ids
from eval.rendering.pins import pin
from eval.rendering.render import first_line
from mosaic.core.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT = "default"


def load_tokenizer(base: Path, template: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a padding token and its chat template pinned.

    `template` is a file that replaces the folder's chat template. Of several named templates the
    one called `default` is taken.

    Raises UsageError without a chat template, if the tokenizer has no fast form, and if the
    folder asks for remote code or is damaged.
    """
    from transformers import AutoTokenizer

    check_model_folder(base)
    with readable(f"{base}: its tokenizer files are missing or damaged"):
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    if not tokenizer.is_fast:
        raise UsageError(
            f"{base}: its tokenizer ({type(tokenizer).__name__}) has no fast form, so the places "
            "of tokens in a text are not known; convert it to a tokenizer.json"
        )
    tokenizer.chat_template = _template(base, tokenizer.chat_template, template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _padding(base, tokenizer)
    pin(tokenizer)
    return tokenizer


def _padding(base: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """A token to fill batches with, where the tokenizer names none: it is never looked at.

    The eos, or else an end that the folder names, or any special token.
    """
    if tokenizer.eos_token is not None:
        return str(tokenizer.eos_token)
    added = tokenizer.added_tokens_decoder
    special = [token for token, one in added.items() if one.special]
    for token in [*stop_token_ids(base), *special]:
        if 0 <= token < len(tokenizer):
            return str(tokenizer.convert_ids_to_tokens(token))
    raise UsageError(
        f"{base}: its tokenizer names neither a padding token nor an eos; name one in "
        "tokenizer_config.json"
    )


def _template(base: Path, own: str | dict[str, str] | None, given: Path | None) -> str:
    """The text of the chat template that is used, without pins."""
    if given is not None:
        return read_template(given)
    if isinstance(own, dict):
        if DEFAULT not in own:
            raise UsageError(
                f"{base}: it has the chat templates {', '.join(sorted(own))}, and none called "
                f"{DEFAULT}; name the file of one as chat_template in the config "
                "(`pool build --chat-template FILE`)"
            )
        own = own[DEFAULT]
    if not own:
        raise UsageError(
            f"{base}: the tokenizer has no chat template, so chats cannot be rendered; name a file "
            "as chat_template in the config (`pool build --chat-template FILE`)"
        )
    return own


def read_template(path: Path) -> str:
    """The text of a chat template's file. Raises UsageError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"chat_template: {path} cannot be read ({first_line(error)}); name a Jinja file"
        ) from None
    if not text.strip():
        raise UsageError(f"chat_template: {path} is empty; name a Jinja file")
    return text


def template_file(base: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path | None:
    """Write a tokenizer's chat template, with its pins, for a server that serves the same base.

    None if the base's own template is the same, so that the server renders alike without.
    """
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(base, local_files_only=True).chat_template
    if own == tokenizer.chat_template:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "chat_template.jinja"
    path.write_text(tokenizer.chat_template, encoding="utf-8")
    return path


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn any failure to read a model's files into a UsageError: `what`, and the first reason.

    `tokenizers` raises nothing narrower than Exception, and `transformers` raises whatever a
    damaged file happens to lead to.
    """
    try:
        yield
    except Exception as error:
        raise UsageError(f"{what}: {first_line(error)}") from None
