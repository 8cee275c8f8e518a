# How this machine's tables differ from the committed ones; part of a default run of an edition that has some.


rule compare:
    input:
        [executed(name) for name in ANALYSES],
        tables("table1"),
        committed=COMMITTED_TABLES,
    output:
        verdict=report(f"{RESULTS}/reproduction/verdict.txt", caption="../report/verdict.rst", category="A. Reproduced?"),
        figure=report(f"{RESULTS}/reproduction/reproduction.png", caption="../report/reproduction.rst", category="A. Reproduced?"),
        cells=report(f"{RESULTS}/reproduction/reproduction.csv", caption="../report/reproduction_table.rst", category="A. Reproduced?"),
    params:
        code=lambda wildcards: provenance.code_digest(("prefmoe.workflow.reproduction", "prefmoe.figures.reproduction"), ()),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/compare.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    # Not reproduced is a result to be shown, not a failure of the job: the verdict is written last.
    shell:
        "python -m prefmoe compare {params.edition:q} > {log:q} 2>&1 || test -s {output.verdict:q}"
