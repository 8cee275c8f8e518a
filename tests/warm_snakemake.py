"""Imported once for all processes that are forked: snakemake has looked for its plugins among what is installed."""

from snakemake.cli import get_argument_parser

get_argument_parser()
