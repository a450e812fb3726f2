"""The rounds as a plain `for` loop over the same nodes that the graph runs: `python examples/plain_loop.py RUN_DIR`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from agent.nodes import all as nodes
from mosaic.app import runs
from mosaic.app.config import load_config
from mosaic.app.wiring import build_services, open_inputs, run_digests
from mosaic.core.journal import Journal


def main(folder: Path, source: str = "lab", overrides: tuple[str, ...] = ()) -> None:
    """Run a config (`approval.kind: auto`) in a new folder, without graph or repair: a plan that violates a constraint
    ends the loop."""
    config = load_config(source, overrides)
    inputs = open_inputs(config)
    runs.create(folder, config, run_digests(config, inputs))
    journal = Journal.open(folder)
    journal.acquire()
    services = build_services(config, folder, journal, inputs)
    state = nodes.resume_at(services)
    state.update(nodes.measure(services, state))
    nodes.calibrate(services, state)
    while "stop" not in state:
        for node in (
            nodes.observe,
            nodes.plan,
            nodes.check,
            nodes.ask,
            nodes.curate,
            nodes.train,
            nodes.measure,
        ):
            state.update(node(services, state))
            if state.get("stop") or state.get("violations"):
                break
        if state.get("violations"):
            raise SystemExit(f"the plan was refused: {state['violations'][0]}")
    nodes.audit(services, state)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
