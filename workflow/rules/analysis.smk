# Tables from the runs' predictions, and the notebooks that show and plot them. Everything but the model's inside
# (05, 09, 10) is made from per-question files alone.


rule tables:
    input:
        f"{RESULTS}/data.json",
        RUN_NOTEBOOKS,
    output:
        table1=report(f"{FIGURES}/table1.csv", caption="../report/table1.rst", category="Tables"),
        table2=report(f"{FIGURES}/table2.csv", caption="../report/table2.rst", category="Tables"),
        seeds=report(f"{FIGURES}/table1_seeds.csv", caption="../report/table1_seeds.rst", category="Tables"),
        comparisons=report(f"{FIGURES}/comparisons.csv", caption="../report/comparisons.rst", category="Tables"),
        breakdown=report(f"{FIGURES}/breakdown.csv", caption="../report/breakdown.rst", category="Tables"),
        turns=report(f"{FIGURES}/turns.csv", caption="../report/turns_table.rst", category="Uncertainty"),
        forest=report(f"{FIGURES}/forest.csv", caption="../report/forest_table.rst", category="Uncertainty"),
        detectable=report(f"{FIGURES}/detectable.csv", caption="../report/detectable_table.rst", category="Uncertainty"),
        calibration=report(f"{FIGURES}/calibration.csv", caption="../report/calibration_table.rst", category="Uncertainty"),
        reliability=report(f"{FIGURES}/reliability.csv", caption="../report/reliability_table.rst", category="Uncertainty"),
        unparsed=report(f"{FIGURES}/unparsed.csv", caption="../report/unparsed_table.rst", category="Uncertainty"),
        separation=report(f"{FIGURES}/separation.csv", caption="../report/separation_table.rst", category="Uncertainty"),
        statistics=report(
            f"{FIGURES}/dataset_statistics.csv", caption="../report/dataset_statistics.rst", category="Tables"
        ),
        shortened=[
            report(f"{FIGURES}/{name}.csv", caption="../report/shortened.rst", category="Tables") for name in SHORTENED_TABLE
        ],
        unseen=[
            report(f"{FIGURES}/{name}.csv", caption="../report/unseen.rst", category="Tables") for name in UNSEEN_TABLE
        ],
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


rule published_results:
    input:
        "published/table1.csv",
        "published/table2.csv",
    output:
        notebook=executed("01_published_results"),
        published_table1=report(f"{FIGURES}/published_table1.png", caption="../report/published_table1.rst", category="Published"),
        published_collapse=report(f"{FIGURES}/published_collapse.png", caption="../report/published_collapse.rst", category="Published"),
    params:
        code=lambda wildcards: code("01_published_results"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/01_published_results.log",
    benchmark:
        f"{RESULTS}/benchmarks/01_published_results.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/01_published_results.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule benchmark:
    input:
        f"{RESULTS}/data.json",
    output:
        notebook=executed("02_benchmark"),
        dataset_statistics=report(f"{FIGURES}/dataset_statistics.png", caption="../report/dataset_statistics.rst", category="Benchmark"),
        popularity_skew=report(f"{FIGURES}/popularity_skew.png", caption="../report/popularity_skew.rst", category="Benchmark"),
        portraits=report(f"{FIGURES}/portraits.png", caption="../report/portraits.rst", category="Benchmark"),
        questions=report(f"{FIGURES}/questions.png", caption="../report/questions.rst", category="Benchmark"),
    params:
        code=lambda wildcards: code("02_benchmark"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/02_benchmark.log",
    benchmark:
        f"{RESULTS}/benchmarks/02_benchmark.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/02_benchmark.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule backbone:
    input:
        f"{RESULTS}/data.json",
    output:
        notebook=executed("03_backbone"),
        backbone_abilities=report(f"{FIGURES}/backbone_abilities.png", caption="../report/backbone_abilities.rst", category="Backbone"),
    params:
        code=backbone_inputs,
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/03_backbone.log",
    benchmark:
        f"{RESULTS}/benchmarks/03_backbone.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/03_backbone.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule collapse:
    input:
        tables("table1", "breakdown"),
    output:
        notebook=executed("04_group_preference_collapse"),
        collapse_recall=report(f"{FIGURES}/collapse_recall.png", caption="../report/collapse_recall.rst", category="Collapse"),
        collapse_by_popularity=report(f"{FIGURES}/collapse_by_popularity.png", caption="../report/collapse_by_popularity.rst", category="Collapse"),
        collapse_by_group_size=report(f"{FIGURES}/collapse_by_group_size.png", caption="../report/collapse_by_group_size.rst", category="Collapse"),
    params:
        code=lambda wildcards: code("04_group_preference_collapse"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/04_group_preference_collapse.log",
    benchmark:
        f"{RESULTS}/benchmarks/04_group_preference_collapse.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/04_group_preference_collapse.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule step_by_step:
    input:
        run_notebooks(FULL_RUNS),
    output:
        notebook=executed("05_prefmoe_step_by_step"),
        user_tokens=report(f"{FIGURES}/user_tokens.png", caption="../report/user_tokens.rst", category="PrefMoE"),
        loss_terms=report(f"{FIGURES}/loss_terms.png", caption="../report/loss_terms.rst", category="PrefMoE"),
    params:
        code=lambda wildcards: code("05_prefmoe_step_by_step"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/05_prefmoe_step_by_step.log",
    benchmark:
        f"{RESULTS}/benchmarks/05_prefmoe_step_by_step.tsv"
    threads: 1
    resources:
        gpus=needed(notebook_resources, "gpus"),
        gres=needed(notebook_resources, "gres"),
        mem_mb=needed(notebook_resources, "mem_mb"),
        runtime=needed(notebook_resources, "runtime"),
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/05_prefmoe_step_by_step.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule main_table:
    input:
        tables("table1", "table1_seeds", "comparisons"),
    output:
        notebook=executed("07_main_table"),
        main_table=report(each_backbone("main_table"), caption="../report/main_table.rst", category="Tables"),
        paired_differences=report(
            each_backbone("paired_differences"), caption="../report/paired_differences.rst", category="Tables"
        ),
    params:
        code=lambda wildcards: code("07_main_table"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/07_main_table.log",
    benchmark:
        f"{RESULTS}/benchmarks/07_main_table.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/07_main_table.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule ablation:
    input:
        tables("table2", "comparisons"),
    output:
        notebook=executed("08_ablation"),
        ablation=report(f"{FIGURES}/ablation.png", caption="../report/ablation.rst", category="Tables"),
    params:
        code=lambda wildcards: code("08_ablation"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/08_ablation.log",
    benchmark:
        f"{RESULTS}/benchmarks/08_ablation.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/08_ablation.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule user_space:
    input:
        run_notebooks(FULL_RUNS),
    output:
        notebook=executed("09_user_space"),
        user_space_facets=report(f"{FIGURES}/user_space_facets.png", caption="../report/user_space_facets.rst", category="PrefMoE"),
        user_space_groups=report(f"{FIGURES}/user_space_groups.png", caption="../report/user_space_groups.rst", category="PrefMoE"),
        user_space=report(f"{FIGURES}/user_space.csv", caption="../report/user_space.rst", category="PrefMoE"),
        neighbourhood_purity=report(f"{FIGURES}/neighbourhood_purity.csv", caption="../report/neighbourhood_purity.rst", category="PrefMoE"),
    params:
        code=lambda wildcards: code("09_user_space"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/09_user_space.log",
    benchmark:
        f"{RESULTS}/benchmarks/09_user_space.tsv"
    threads: 1
    resources:
        gpus=needed(notebook_resources, "gpus"),
        gres=needed(notebook_resources, "gres"),
        mem_mb=needed(notebook_resources, "mem_mb"),
        runtime=needed(notebook_resources, "runtime"),
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/09_user_space.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule attention_maps:
    input:
        run_notebooks(FULL_RUNS),
    output:
        notebook=executed("10_attention_maps"),
        attention_prefix=report(f"{FIGURES}/attention_prefix.png", caption="../report/attention_prefix.rst", category="PrefMoE"),
        attention_image=report(f"{FIGURES}/attention_image.png", caption="../report/attention_image.rst", category="PrefMoE"),
        attention_prefix_values=report(f"{FIGURES}/attention_prefix.csv", caption="../report/attention_prefix.rst", category="PrefMoE"),
    params:
        code=lambda wildcards: code("10_attention_maps"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/10_attention_maps.log",
    benchmark:
        f"{RESULTS}/benchmarks/10_attention_maps.tsv"
    threads: 1
    resources:
        gpus=needed(notebook_resources, "gpus"),
        gres=needed(notebook_resources, "gres"),
        mem_mb=needed(notebook_resources, "mem_mb"),
        runtime=needed(notebook_resources, "runtime"),
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/10_attention_maps.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule routing:
    input:
        run_notebooks(FULL_RUNS),
    output:
        notebook=executed("11_routing"),
        routing_gates=report(f"{FIGURES}/routing_gates.png", caption="../report/routing_gates.rst", category="PrefMoE"),
        routing_gates_values=report(f"{FIGURES}/routing_gates.csv", caption="../report/routing_gates.rst", category="PrefMoE"),
    params:
        code=lambda wildcards: code("11_routing"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/11_routing.log",
    benchmark:
        f"{RESULTS}/benchmarks/11_routing.tsv"
    threads: 1
    resources:
        gpus=needed(notebook_resources, "gpus"),
        gres=needed(notebook_resources, "gres"),
        mem_mb=needed(notebook_resources, "mem_mb"),
        runtime=needed(notebook_resources, "runtime"),
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/11_routing.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule audit:
    input:
        "published/table1.csv",
        "published/table2.csv",
        "published/dataset_statistics.csv",
        tables("table1", "comparisons"),
    output:
        notebook=executed("12_audit_of_the_published_tables"),
        published_fits=report(f"{FIGURES}/published_fits.png", caption="../report/published_fits.rst", category="Published"),
        published_offsets=report(f"{FIGURES}/published_offsets.png", caption="../report/published_offsets.rst", category="Published"),
        published_differences=report(f"{FIGURES}/published_differences.png", caption="../report/published_differences.rst", category="Published"),
        published_steps=report(f"{FIGURES}/published_steps.png", caption="../report/published_steps.rst", category="Published"),
        gains=report(f"{FIGURES}/gains.png", caption="../report/gains.rst", category="Published"),
        published_intervals=report(f"{FIGURES}/published_intervals.csv", caption="../report/published_intervals.rst", category="Published"),
    params:
        code=lambda wildcards: code("12_audit_of_the_published_tables"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/12_audit_of_the_published_tables.log",
    benchmark:
        f"{RESULTS}/benchmarks/12_audit_of_the_published_tables.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/12_audit_of_the_published_tables.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule how_sure:
    input:
        tables("table1", "forest", "detectable", "turns", "calibration", "reliability", "unparsed", "separation"),
    output:
        notebook=executed("14_how_sure"),
        forest=report(f"{FIGURES}/forest.png", caption="../report/forest.rst", category="Uncertainty"),
        detectable=report(f"{FIGURES}/detectable.png", caption="../report/detectable.rst", category="Uncertainty"),
        turns=report(f"{FIGURES}/turns.png", caption="../report/turns.rst", category="Uncertainty"),
        reliability=report(f"{FIGURES}/reliability.png", caption="../report/reliability.rst", category="Uncertainty"),
        separation=report(f"{FIGURES}/separation.png", caption="../report/separation.rst", category="Uncertainty"),
    params:
        code=lambda wildcards: code("14_how_sure"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/14_how_sure.log",
    benchmark:
        f"{RESULTS}/benchmarks/14_how_sure.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/14_how_sure.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"


rule one_picture_two_users:
    input:
        run_notebooks(EDITION.runs()),
    output:
        notebook=executed("15_one_picture_two_users"),
        one_picture_two_users=report(f"{FIGURES}/one_picture_two_users.png", caption="../report/one_picture_two_users.rst", category="Examples"),
    params:
        code=lambda wildcards: code("15_one_picture_two_users"),
        edition=EDITION.name,
    log:
        f"{RESULTS}/logs/15_one_picture_two_users.log",
    benchmark:
        f"{RESULTS}/benchmarks/15_one_picture_two_users.tsv"
    threads: 1
    conda:
        ENVIRONMENT
    shell:
        "python -m prefmoe notebook notebooks/15_one_picture_two_users.ipynb {output.notebook:q} --threads {threads}"
        " -p edition={params.edition:q} > {log:q} 2>&1"
