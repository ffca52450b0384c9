# `sieve run` writes plan.json into a folder of its own and starts snakemake there. Which runs are made, and whether
# a run is finished, is decided by lib.core.engine, never by this file. One rule for each stage and set of resources.
import json
from pathlib import Path

PLAN = json.loads(Path("plan.json").read_text())
RUNS = PLAN["runs"]


def of(wildcards):
    return RUNS[f"{wildcards.notebook}/{wildcards.key}"]


def marker(run):
    return f"done/{RUNS[run]['group']}/{run}"


wildcard_constraints:
    notebook=r"\w+",
    key="[0-9a-f]{10}",


localrules:
    all,


rule all:
    input:
        [marker(run) for run in RUNS],


for number, group in enumerate(PLAN["groups"]):

    rule:
        name:
            f"{group['name']}_{number}"
        input:
            lambda wildcards: [marker(upper) for upper in of(wildcards)["upstream"]],
        output:
            f"done/{number}/{{notebook}}/{{key}}",  # a marker: the run's own files are not snakemake's to read or delete
        threads: lambda wildcards: of(wildcards)["threads"]
        resources:
            **group["resources"],
        shell:
            "{PLAN[python]:q} -P -c 'from lib.core.engine import job; job(\"{wildcards.notebook}/{wildcards.key}\")'"
