"""What the Snakefile and the command line ask for: notebooks, resources, publishing, comparing."""
