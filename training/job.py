"""A training job in a process of its own: `python -m training.job JOB.json RESULT.json`; progress as lines of JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from mosaic.errors import MosaicError
from training.trainer import TrainJob

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main(job_path: str, result_path: str) -> int:
    """Train and write the result last; an expected failure goes to stderr as one line."""
    from training.sft import train

    job = TrainJob.model_validate_json(Path(job_path).read_text())
    try:
        result = train(job, lambda event: print(json.dumps(event), flush=True))
    except MosaicError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    temporary = Path(result_path).with_suffix(".tmp")
    temporary.write_text(result.model_dump_json())
    temporary.rename(result_path)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
