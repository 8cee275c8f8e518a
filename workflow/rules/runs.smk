# The benchmark, and every (backbone, method) run on it. Run folders are not outputs, so that snakemake never deletes
# a checkpoint or a finished run: the executed notebook is the sign that all seeds are complete.


rule data:
    input:
        real_data,
    output:
        f"{RESULTS}/data.json",
    params:
        inputs=data_inputs,
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/data.log",
    benchmark:
        f"{RESULTS}/benchmarks/data.tsv"
    threads: 1
    priority: 20
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe data {params.edition:q} {output:q} > {log:q} 2>&1"


rule run:
    input:
        f"{RESULTS}/data.json",
        fetched_weights,
        lambda wildcards: run_notebooks((wildcards.backbone, name) for name in EDITION.needs(wildcards.method)),
    output:
        f"{RESULTS}/notebooks/{RUN_NOTEBOOK}/{{backbone}}/{{method}}.ipynb",
    params:
        inputs=run_inputs,
        edition=EDITION.name,
        notebook=f"notebooks/{RUN_NOTEBOOK}.ipynb",
        launcher=launcher,
    log:
        f"{RESULTS}/logs/{RUN_NOTEBOOK}/{{backbone}}/{{method}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{RUN_NOTEBOOK}/{{backbone}}/{{method}}.tsv"
    threads: run_threads
    priority: 10
    resources:
        gpus=needed(run_resources, "gpus"),
        gres=needed(run_resources, "gres"),
        mem_mb=needed(run_resources, "mem_mb"),
        runtime=needed(run_resources, "runtime"),
    conda:
        ENVIRONMENT
    shell:
        "({params.launcher} python -m prefmoe notebook {params.notebook:q} {output:q} --threads {threads}"
        " -p edition={params.edition:q} -p backbone={wildcards.backbone:q} -p method={wildcards.method:q}) > {log:q} 2>&1"


if NEEDED:

    # Runs that others begin with come first, and then those others: a chain of two long runs would else be left for the
    # end, and for one core.
    use rule run as run_that_others_need with:
        wildcard_constraints:
            method="|".join(map(re.escape, NEEDED)),
        priority: 18

    use rule run as run_of_a_chain with:
        wildcard_constraints:
            method="|".join(map(re.escape, CHAINED)),
        priority: 15

    ruleorder: run_that_others_need > run_of_a_chain > run
