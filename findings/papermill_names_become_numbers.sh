#!/usr/bin/env bash
# papermill: on the command line a user called Nan is not a number, and user 007 is user 7.
#
# Seen with papermill 2.7.0 (CPython 3.11, Linux). `papermill -p NAME VALUE` looks at the value alone, never at the
# notebook's own default: whatever Python's int() or float() accepts becomes a number, although the parameter is a text in
# the cell tagged "parameters". Of people's names and identifiers "Nan" and "nan" become a float that is not equal to
# itself, "Infinity" becomes infinite, "007" becomes 7 and "1_000" becomes 1000; the run ends with status 0, and a table
# selected by that name is empty. `papermill -r NAME VALUE` keeps the text. Expected: a text where the default is one.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export JUPYTER_DATA_DIR="$place/jupyter" IPYTHONDIR="$place/ipython"
python3 -m venv venv && . venv/bin/activate
pip install --quiet papermill==2.7.0 ipykernel==7.3.0 nbformat==5.10.4
python -m ipykernel install --prefix "$place/venv" --name python3 >/dev/null 2>&1
python - <<'PY'
import nbformat
from nbformat import v4
cells = [v4.new_code_cell('user = "Ann"', metadata={"tags": ["parameters"]}),
         v4.new_code_cell('print(type(user).__name__, user, user == user)')]
spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
nbformat.write(v4.new_notebook(cells=cells, metadata=spec), "greet.ipynb")
PY
for name in Ann Nan Infinity 007 1_000; do
    papermill --log-level ERROR --no-progress-bar -p user "$name" greet.ipynb "as-$name.ipynb" 2>errors || { cat errors; exit 1; }
    papermill --log-level ERROR --no-progress-bar -r user "$name" greet.ipynb "raw-$name.ipynb" 2>errors || { cat errors; exit 1; }
done
python - <<'PY'
import sys
import nbformat
def said(name):
    return nbformat.read(name, 4).cells[-1].outputs[0]["text"].strip()
names = ["Ann", "Nan", "Infinity", "007", "1_000"]
seen = {name: (said(f"as-{name}.ipynb"), said(f"raw-{name}.ipynb")) for name in names}
for name, (plain, raw) in seen.items():
    print(f"-p user {name}: {plain};  -r user {name}: {raw}")
expected = {"Ann": "str Ann True", "Nan": "float nan False", "Infinity": "float inf True", "007": "int 7 True", "1_000": "int 1000 True"}
same = all(seen[name] == (expected[name], f"str {name} True") for name in names)
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
