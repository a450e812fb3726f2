# %% [markdown]
# # A run from Python
#
# Editors that know cells (`# %%`) show this file as a notebook; `python examples/notebook.py` runs
# it from top to bottom. It needs about ten minutes on two cores, and no GPU.

# %%
import mosaic

run = mosaic.run("lab", overrides={"rounds": 1, "calibration.repeats": 1})
run  # in a notebook: a table of scores with intervals

# %% [markdown]
# Scores are data. Every mean has its 95 % interval; only the audit suites were seen by no decision.

# %%
frame = run.to_pandas()
audit = frame[frame.role == "audit"]
print(audit.pivot(index="objective", columns="round", values="mean").round(2))

# %% [markdown]
# Is the chosen round better than the pools' own proportions, which nobody had to plan? The report
# says it per objective, over the same prompts, with the interval of the difference.

# %%
report = run.report()
if report.audit is not None:
    for objective, gain in report.audit.gain.items():
        print(f"{objective}: {gain.mean:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})")

# %% [markdown]
# What was planned, and why.

# %%
for round_ in run.rounds:
    if round_.plan is not None:
        print(f"round {round_.round}, planned by {round_.planner}: {round_.plan.rationale}")
        print(round_.plan.ratios)

# %% [markdown]
# The whole trace, event by event. `python -m mosaic schema trace` describes each kind.

# %%
for event in run.trace(1):
    print(event["seq"], event["kind"])

# %% [markdown]
# Runs stay where they are. Later, and in another process:

# %%
again = mosaic.open_run(run.path)
print(again.status().state)
