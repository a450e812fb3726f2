"""`mosaic lab build`: the whole laboratory from nothing, with a manifest of what it is."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mosaic.errors import UsageError
from mosaic.lab import data, pretrain
from mosaic.lab.words import Words, make_words
from mosaic.types import ROLES, canonical_json

DATA = Path(__file__).parent / "data"
MANIFEST = "manifest.json"
RECIPE = ("words.py", "safety.py", "over_refusal.py", "instructions.py", "data.py", "pretrain.py")
MAX_LENGTH = 512


def build(
    out: Path,
    seed: int,
    steps: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
    chats: int = data.CORPUS_CHATS,
) -> dict[str, Any]:
    """Write model/, pool/, suites/, config.yaml and manifest.json into `out`; the manifest. `steps` and `chats`
    shorten pre-training for tests. UsageError where `out` holds a laboratory already."""
    from training.pool import build_pool

    if (out / MANIFEST).exists():
        raise UsageError(f"--out {out} holds a laboratory already; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    words = make_words(seed)
    progress("generating suites and pools")
    digest = write_suites(words, seed, out / "suites")
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        lines = [canonical_json(row.json_data()) for row in data.pool_rows(words, seed)]
        rows.write_text("\n".join(lines) + "\n")
        digest.update(rows.read_bytes())
        texts = list(data.corpus(words, seed, chats))
        digest.update(canonical_json(texts).encode())
        tokenizer = pretrain.make_tokenizer(m["content"] for chat in texts for m in chat)
        model = pretrain.pretrain(tokenizer, texts, seed, pretrain.STEPS if steps is None else steps, progress)
        pretrain.save(model, tokenizer, out / "model")
        progress("building the pool")
        pool = build_pool([rows], out / "pool", model=out / "model", max_length=MAX_LENGTH)
    template = DATA / "config.yaml"
    if template.resolve() != (out / "config.yaml").resolve():
        shutil.copyfile(template, out / "config.yaml")
    manifest = {
        "seed": seed,
        "recipe_digest": recipe_digest(),
        "data_digest": digest.hexdigest(),
        "weights_digest": hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "pool_digest": pool.digest,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "parameters": int(model.num_parameters()),
        "steps": pretrain.STEPS if steps is None else steps,
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def recipe_digest() -> str:
    """SHA-256 over the sources that decide what the laboratory is."""
    digest = hashlib.sha256()
    for name in RECIPE:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def write_suites(words: Words, seed: int, folder: Path) -> Any:
    """Write all suites; a running digest over them. No two prompts of any role have the same turns."""
    digest = hashlib.sha256()
    for dataset, objective in data.DATASETS.items():
        taken: set[tuple[str, ...]] = {
            tuple(m.content for m in row.messages if m.role == "user")
            for row in data.pool_rows(words, seed)
            if row.dataset == dataset
        }
        (folder / objective).mkdir(parents=True, exist_ok=True)
        for role in ROLES:
            prompts = data.suite_prompts(words, seed, dataset, role, taken)
            text = "".join(canonical_json(p.json_data()) + "\n" for p in prompts)
            (folder / objective / f"{role}.jsonl").write_text(text)
            digest.update(text.encode())
    return digest
