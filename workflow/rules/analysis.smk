# Tables from the runs' predictions, and the notebooks of workflow/notebooks.yaml that show and plot them.


rule tables:
    input:
        f"{RESULTS}/data.json",
        RUN_NOTEBOOKS,
    output:
        [shown(f"{FIGURES}/{name}.csv", category) for category, names in TABLES.items() for name in names],
    params:
        inputs=table_inputs,
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/tables.log",
    benchmark:
        f"{RESULTS}/benchmarks/tables.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe tables {params.edition:q} > {log:q} 2>&1"


# All items for all users; for the notebook of the one edition that shows it, or where somebody names its tables.
rule ranking:
    input:
        f"{RESULTS}/data.json",
        RUN_NOTEBOOKS,
    output:
        report(
            [f"{FIGURES}/{name}.csv" for name in ("ranking", "ranking_comparisons", "recommended", "recommender_trials")],
            caption="../report/ranking.rst",
            category="Recommendation",
        ),
    params:
        code=lambda wildcards: provenance.code_digest(("prefmoe.running.ranking",), (), METHODS),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/ranking.log",
    benchmark:
        f"{RESULTS}/benchmarks/ranking.tsv"
    threads: 1
    resources:
        mem_mb=8000,
    conda:
        ENVIRONMENT
    shell:
        "OMP_NUM_THREADS={threads} python -m prefmoe rank {params.edition:q} > {log:q} 2>&1"


for name, row in NOTEBOOKS.items():

    rule:
        name:
            row["rule"]
        input:
            notebook_inputs(row),
        output:
            [shown(path, row["category"], name) for name, path in made_by(row)],
            notebook=executed(name),
        params:
            code=notebook_code(name, row),
            notebook=f"notebooks/{name}.ipynb",
            edition=EDITION.name,
        priority: row.get("priority", 0)
        log:
            f"{RESULTS}/logs/{name}.log",
        benchmark:
            f"{RESULTS}/benchmarks/{name}.tsv"
        threads: 1
        resources:
            **notebook_resources(row),
        conda:
            ENVIRONMENT
        shell:
            "python -m prefmoe notebook {params.notebook:q} {output.notebook:q} --threads {threads}"
            " -p edition={params.edition:q} > {log:q} 2>&1"
