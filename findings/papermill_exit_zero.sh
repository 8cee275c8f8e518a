#!/usr/bin/env bash
# papermill: a cell that ends its process with status 0 makes the notebook a success, with the cells below it never run.
#
# Seen with papermill 2.7.0, nbclient 0.11.0, ipykernel 7.4.0 (CPython 3.11, Linux): a notebook of three cells whose
# second one calls sys.exit(0) is written with its final name, `papermill` exits with 0, and its metadata hold no
# exception; the third cell has no execution_count and the papermill status "pending". With sys.exit(1) it fails, as
# expected. Matters wherever "the output file is there" means "the notebook has run": look at every cell's
# execution_count instead.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv && . venv/bin/activate
pip install --quiet papermill==2.7.0 nbclient==0.11.0 ipykernel==7.4.0 nbformat==5.11.1
python - <<'PY'
import nbformat
from nbformat.v4 import new_code_cell, new_notebook
kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
for status in (0, 1):
    cells = [new_code_cell("before = 1"), new_code_cell(f"import sys; sys.exit({status})"), new_code_cell("after = 1")]
    nbformat.write(new_notebook(cells=cells, metadata=kernel), f"exit{status}.ipynb")
PY
zero=0; papermill --no-progress-bar exit0.ipynb out0.ipynb >log0 2>&1 || zero=$?
one=0; papermill --no-progress-bar exit1.ipynb out1.ipynb >log1 2>&1 || one=$?
python - "$zero" "$one" <<'PY'
import sys, nbformat
cells = nbformat.read("out0.ipynb", 4).cells
code = [cell for cell in cells if cell.cell_type == "code"]
print("exit statuses of papermill for sys.exit(0), sys.exit(1):", sys.argv[1:])
print("execution counts:", [c.execution_count for c in code], "status:", [c.metadata.papermill.status for c in code])
expected = sys.argv[1:] == ["0", "1"] and code[-1].execution_count is None
print("as described" if expected else "CHANGED")
sys.exit(not expected)
PY
