# One rule for every run. `sieve run` writes plan.json into a folder of its own and starts snakemake there;
# which runs are made, and whether a run is finished, is decided by lib.engine, never by this file.
import json
from pathlib import Path

PLAN = json.loads(Path("plan.json").read_text())
RUNS = PLAN["runs"]


def of(wildcards):
    return RUNS[f"{wildcards.notebook}/{wildcards.key}"]


def resource(name, default):
    return lambda wildcards: of(wildcards)["resources"].get(name, default)


wildcard_constraints:
    notebook=r"\w+",
    key="[0-9a-f]{10}",


localrules:
    all,


rule all:
    input:
        [f"done/{run}" for run in RUNS],


rule run:
    input:
        lambda wildcards: [f"done/{upper}" for upper in of(wildcards)["upstream"]],
    output:
        "done/{notebook}/{key}",  # a marker: the run's own files are not snakemake's to delete
    log:
        PLAN["outputs"] + "/{notebook}/{key}/run.ipynb",  # the executed notebook, kept when it fails
    threads: lambda wildcards: of(wildcards)["threads"]
    resources:
        **{name: resource(name, default) for name, default in PLAN["resources"].items()},
    shell:
        "{PLAN[python]:q} -c 'from lib.engine import job; job(\"{wildcards.notebook}/{wildcards.key}\")'"
