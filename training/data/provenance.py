"""Where data came from and under which licence: a card beside each imported file, carried into the pool's manifest.

A card is `<file>.card.json`, or `card.json` in a suite's folder: a JSON list of `Origin`, one for each import.
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
    """One import. `licence` is an identifier of the Hugging Face hub (`cc-by-4.0`, `odc-by`, ...) or `unknown`.

    `source` is a name or address, never a path; `left_out` counts rows that were not taken, by reason.
    """

    dataset: str
    source: str
    licence: str = UNKNOWN
    shape: str = "pool row"
    rows: int = Field(ge=0)
    left_out: dict[str, int] = {}
    command: str = ""


CARD = TypeAdapter(list[Origin])

# What the data set cards say (google/IFEval, bench-llm/or-bench, allenai/tulu-3-sft-personas-instruction-following).
# XGuard-Train is gated and names no licence.
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
    path.write_text(json.dumps([o.json_data() for o in origins], indent=1) + "\n")


def read_cards(sources: Sequence[Path]) -> list[Origin]:
    """The cards that lie beside the given files; files without one are passed over."""
    found = []
    for source in sources:
        card = card_of(source)
        if card.is_file():
            try:
                found += CARD.validate_json(card.read_text())
            except (ValidationError, UnicodeDecodeError) as error:
                raise UsageError(
                    f"{card}: not a card of an import ({error}); delete it or import again"
                ) from None
    return found


def carry_cards(sources: Sequence[Path], out: Path) -> None:
    """Give a file that was made from others (labelled rows, say) the cards of what it was made from."""
    found = read_cards(sources)
    if found:
        write_card(card_of(out), *found)


def licensed(dataset_licences: Sequence[str]) -> dict[str, str]:
    """`dataset=licence` options as a dict; UsageError for anything else."""
    out = {}
    for option in dataset_licences:
        dataset, equals, licence = option.partition("=")
        if not equals or not dataset or not licence:
            raise UsageError(
                f"--licence {option}: write it as DATASET=LICENCE, such as chats=cc-by-4.0"
            )
        out[dataset] = licence
    return out


def origins(
    cards: Sequence[Origin], rows: dict[str, int], licences: dict[str, str]
) -> list[Origin]:
    """One origin or more for every data set of a pool. A data set without a card came from rows that somebody wrote.

    `rows` counts rows by data set; `licences` overrides what cards say. UsageError for a licence of no data set.
    """
    for dataset in licences:
        if dataset not in rows:
            raise UsageError(
                f"--licence {dataset}=...: no such data set in the rows; there are {', '.join(sorted(rows))}"
            )
    known = [c for c in cards if c.dataset in rows]
    missing = sorted(set(rows) - {c.dataset for c in known})
    made = known + [Origin(dataset=d, source="rows without a card", rows=rows[d]) for d in missing]
    changed = [
        o.model_copy(update={"licence": licences[o.dataset]}) if o.dataset in licences else o
        for o in made
    ]
    return sorted(changed, key=lambda o: (o.dataset, o.source))
