"""The rounds as a plain loop over the same nodes that the graph runs.

python examples/plain_loop.py RUN_DIR [CONFIG]
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from agent.graph import NODES, after_ask, after_check, after_observe, after_plan, begin_at
from agent.nodes.state import fresh
from mosaic.app import runs
from mosaic.app.config_file import load_config
from mosaic.app.wiring import build_context, open_inputs, run_digests
from mosaic.core.journal import Journal

# Where the loop goes after a node: to one node, or to the one that the node's state names.
NEXT = {
    "base": "permit",
    "permit": "calibrate",
    "calibrate": "retain",
    "retain": "look",
    "look": "observe",
    "run": "retain",
}
CHOICES = {"observe": after_observe, "plan": after_plan, "check": after_check, "ask": after_ask}


def main(folder: Path, source: str = "lab", overrides: tuple[str, ...] = ()) -> None:
    """Run a config in a new folder.

    The approval must not ask a person (`approval.kind: auto`): there is nobody to wait for.
    """
    config = load_config(source, overrides)
    inputs = open_inputs(config)
    runs.create(folder, config, run_digests(config, inputs))
    journal = Journal.open(folder)
    journal.acquire()
    context = build_context(config, folder, journal, inputs)
    state, name = fresh(0), begin_at(context)
    while name != "audit":
        state.update(NODES[name](context, state))
        name = CHOICES[name](state) if name in CHOICES else NEXT[name]
        if name == "approve":
            raise SystemExit(f"round {state['round']} waits for a person's approval")
    NODES["audit"](context, state)
    context.evaluator.generator.close()
    journal.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
