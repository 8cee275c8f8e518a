# What is not part of a default run: weights made again, settings chosen again, what is committed brought up to date.

BOOK = sorted(
    str(path)
    for folder in ("site", "notebooks", "course", "docs", "figures/mini", "prefmoe", "workflow/scripts")
    for path in Path(folder).rglob("*")
    if path.suffix in (".md", ".ipynb", ".py", ".png", ".yaml", ".css", ".svg", ".html", ".js", ".json", ".webp", ".safetensors", ".csv", ".parquet")
)


rule pretrain:
    input:
        expand("results/pretraining/{miniature}.done", miniature=[*MINIATURES, CHOICE_MINIATURE, DRAWER]),


# The second miniature starts from the first one's language model; that of choices and the drawer from nothing.
rule pretrain_miniature:
    input:
        lambda wildcards: [f"results/pretraining/{name}.done" for name in made_before(wildcards.miniature)],
    output:
        touch("results/pretraining/{miniature}.done"),
    log:
        "results/pretraining/{miniature}.log",
    threads: ALL_CORES
    resources:
        mem_mb=8000,
        runtime=HOURS,
    conda:
        ENVIRONMENT
    shell:
        f"{PYTHON_FOR_LONG} workflow/scripts/pretrain.py {{wildcards.miniature:q}} >> {{log:q}} 2>&1"


# What the small edition's backbone learned before it met any user: from drawings the projector, from conversations the
# language model; both are part of the package. A projector from photographs stays with whoever has these.
rule projector:
    input:
        expand("results/projector/{stage}.done", stage=PROJECTOR_STAGES),


rule align:
    input:
        lambda wildcards: [
            f"results/projector/{stage}.done"
            for stage in PROJECTOR_STAGES[: PROJECTOR_STAGES.index(wildcards.stage)]
        ],
    output:
        touch("results/projector/{stage}.done"),
    params:
        folder=lambda wildcards: projector_folder(),
        ship=lambda wildcards: "--ship" if wildcards.stage != "photographs" else "",
    log:
        "results/projector/{stage}.log",
    threads: 1
    resources:
        mem_mb=8000,
        runtime=HOURS,
    conda:
        ENVIRONMENT
    shell:
        f"{PYTHON_FOR_LONG} workflow/scripts/align.py {{params.folder:q}} {{wildcards.stage:q}} {{params.ship}} > {{log:q}} 2>&1"


rule tune_backbone:
    input:
        f"{RESULTS}/data.json",
        fetched_weights,
        f"config/tuning/{EDITION.name}.yaml",
    output:
        touch(f"{RESULTS}/tuning/{{backbone}}.done"),
    params:
        inputs=tuning_inputs,
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/tuning/{{backbone}}.log",
    threads: 1
    resources:
        mem_mb=8000,
        runtime=HOURS,
    conda:
        ENVIRONMENT
    shell:
        f"{PYTHON_FOR_LONG} workflow/scripts/tune.py {{params.edition:q}} --backbones {{wildcards.backbone:q}} > {{log:q}} 2>&1"


rule tune:
    input:
        expand(f"{RESULTS}/tuning/{{backbone}}.done", backbone=EDITION.backbones),
    params:
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/tuning/tune.log",
    conda:
        ENVIRONMENT
    shell:
        "python workflow/scripts/tune.py {params.edition:q} > {log:q} 2>&1"


rule publish:
    input:
        [executed(name) for name in ANALYSES],
        RUN_NOTEBOOKS,
    params:
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/publish.log",
    conda:
        ENVIRONMENT
    shell:
        "python workflow/scripts/publish.py {params.edition:q} > {log:q} 2>&1"


# The book, from what is committed: no run, no edition and no network has a part in it.
rule site:
    input:
        BOOK,
    output:
        "results/site/html/index.html",
    params:
        repository=os.environ.get("PREFMOE_REPOSITORY", ""),
    log:
        "results/site/site.log",
    conda:
        ENVIRONMENT
    shell:
        "python workflow/scripts/site_book.py > {log:q} 2>&1"
