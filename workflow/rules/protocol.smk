# Experiments about the protocol (config/protocol/<edition>.yaml): a target of its own, because they take hours. A run
# that several experiments ask for is one job, and the edition's own runs are taken where a variant wants no others; run
# folders are not outputs, so that snakemake never deletes one.


rule protocol:
    input:
        executed("13_protocol_questions"),


rule protocol_run:
    input:
        f"{RESULTS}/data.json",
    output:
        touch(f"{RESULTS}/protocol/done/{{backbone}}/{{plan}}"),
    params:
        inputs=plan_inputs,
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/protocol/{{backbone}}/{{plan}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/protocol/{{backbone}}/{{plan}}.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        f"{PYTHON_FOR_LONG} -m prefmoe protocol {{params.edition:q}}"
        " --run {wildcards.backbone:q} {wildcards.plan:q} > {log:q} 2>&1"


rule protocol_tables:
    input:
        [f"{RESULTS}/protocol/done/{backbone}/{key}" for backbone, key in PLANS if (backbone, key) not in OWN_PLANS],
        run_notebooks(OWN_PLANS),
    output:
        results=report(
            expand(f"{FIGURES}/protocol/{{question}}.csv", question=list(PROTOCOL.experiments)),
            caption="../report/protocol.rst",
            category="Protocol",
        ),
        differences=report(
            f"{FIGURES}/protocol/differences.csv", caption="../report/protocol.rst", category="Protocol"
        ),
        trends=report(f"{FIGURES}/protocol/trends.csv", caption="../report/protocol.rst", category="Protocol"),
    params:
        inputs=protocol_inputs,
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/protocol/tables.log",
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe protocol {params.edition:q} > {log:q} 2>&1"


rule protocol_questions:
    input:
        rules.protocol_tables.output,
    output:
        notebook=executed("13_protocol_questions"),
        figures=report(
            expand(f"{FIGURES}/protocol/{{question}}.png", question=list(PROTOCOL.experiments)),
            caption="../report/protocol.rst",
            category="Protocol",
        ),
    params:
        code=lambda wildcards: code("13_protocol_questions"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/13_protocol_questions.log",
    benchmark:
        f"{RESULTS}/benchmarks/13_protocol_questions.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/13_protocol_questions.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"
