"""Where data came from and under which licence.

A card lies beside each imported file and is carried into the pool's manifest. It is
`<file>.card.json`, or `card.json` in a suite's folder: a JSON list of `Origin`, one per import.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from mosaic.core.errors import UsageError
from mosaic.core.types.base import FrozenModel

UNKNOWN = "unknown"
SUITE_CARD = "card.json"


class Origin(FrozenModel):
    """One import.

    `licence` is an identifier of the Hugging Face hub (`cc-by-4.0`, `odc-by`, ...) or `unknown`.
    `source` is a name or address, never a path. `left_out` counts rows that were not taken, by
    reason.
    """

    dataset: str
    source: str
    licence: str = UNKNOWN
    shape: str = "pool row"
    rows: int = Field(ge=0)
    left_out: dict[str, int] = {}
    command: str = ""


CARD = TypeAdapter(list[Origin])

# From the data set cards of google/IFEval, bench-llm/or-bench and
# allenai/tulu-3-sft-personas-instruction-following. XGuard-Train is gated and names no licence.
LICENCES = {
    "ifeval": "apache-2.0",
    "or-bench-80k": "cc-by-4.0",
    "or-bench-hard-1k": "cc-by-4.0",
    "or-bench-toxic": "cc-by-4.0",
    "tulu-if": "odc-by",
}


def card_of(path: Path) -> Path:
    """Where the card of an imported file lies."""
    return path.with_name(path.name + ".card.json")


def write_card(path: Path, *origins: Origin) -> None:
    """Write a card that lists these imports."""
    path.write_text(json.dumps([origin.json_data() for origin in origins], indent=1) + "\n")


def read_cards(sources: Sequence[Path]) -> list[Origin]:
    """The cards that lie beside the given files; files without one are passed over.

    Raises UsageError for a card that cannot be read.
    """
    found: list[Origin] = []
    for source in sources:
        card = card_of(source)
        if not card.is_file():
            continue
        try:
            found += CARD.validate_json(card.read_text())
        except (ValidationError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{card}: not a card of an import ({error}); delete it or import again"
            ) from None
    return found


def carry_cards(sources: Sequence[Path], out: Path) -> None:
    """Give a file that was made from others (labelled rows, say) the cards of its sources."""
    found = read_cards(sources)
    if found:
        write_card(card_of(out), *found)


def licensed(dataset_licences: Sequence[str]) -> dict[str, str]:
    """`dataset=licence` options as a dict. Raises UsageError for anything else.

    >>> licensed(["chats=cc-by-4.0"])
    {'chats': 'cc-by-4.0'}
    """
    licences: dict[str, str] = {}
    for option in dataset_licences:
        dataset, equals, licence = option.partition("=")
        if not equals or not dataset or not licence:
            raise UsageError(
                f"--licence {option}: write it as DATASET=LICENCE, such as chats=cc-by-4.0"
            )
        licences[dataset] = licence
    return licences


def origins(
    cards: Sequence[Origin], rows: dict[str, int], licences: dict[str, str]
) -> list[Origin]:
    """At least one origin for every data set of a pool, sorted.

    `rows` counts rows by data set; `licences` overrides what cards say. Rows of a data set without
    a card were written by somebody. Raises UsageError for a licence of a data set that is not
    there.
    """
    for dataset in licences:
        if dataset not in rows:
            there = ", ".join(sorted(rows))
            raise UsageError(
                f"--licence {dataset}=...: no such data set in the rows; there are {there}"
            )
    known = [card for card in cards if card.dataset in rows]
    with_card = {card.dataset for card in cards}
    for dataset in sorted(set(rows) - with_card):
        known.append(Origin(dataset=dataset, source="rows without a card", rows=rows[dataset]))
    licensed_origins = []
    for origin in known:
        if origin.dataset in licences:
            origin = origin.model_copy(update={"licence": licences[origin.dataset]})
        licensed_origins.append(origin)
    return sorted(licensed_origins, key=lambda origin: (origin.dataset, origin.source))
