# The whole workflow: data, runs (one notebook per backbone and method, its seeds inside), tables, analysis notebooks.
#
#   snakemake --cores all                          the default edition, mini
#   snakemake --cores all --config edition=smoke   another one of config/*.yaml
#   snakemake --cores all --config seeds=all       all seeds of an edition that has the first alone unless asked
#   snakemake --cores all pretrain                 make the miniature backbones' weights again
#   snakemake --cores all projector                make the small edition's projector again (needs prefmoe fetch smollm2)
#   snakemake --cores all tune                     choose settings on the validation split again
#   snakemake --cores all protocol                 the experiments about the protocol (three hours)
#   snakemake --cores 1 site                       the book of notebooks, course and pages (needs the extra docs)
#   snakemake --cores all publish --config seeds=all    the default edition's results into figures/, notebooks/, README.md

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"


report: "workflow/report/workflow.rst"


onstart:
    sole_workflow()


onsuccess:
    print_verdict()


rule all:
    default_target: True
    input:
        tables("table1"),
        RUN_NOTEBOOKS,
        [executed(name) for name in ANALYSES],
        VERDICT if COMMITTED_TABLES else [],


include: "workflow/rules/runs.smk"
include: "workflow/rules/analysis.smk"
include: "workflow/rules/reproduction.smk"
include: "workflow/rules/maintenance.smk"


if PROTOCOL:

    include: "workflow/rules/protocol.smk"
