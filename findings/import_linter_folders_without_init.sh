#!/usr/bin/env bash
# import-linter: a contract is kept when the module that breaks it lies in a folder without __init__.py.
#
# Seen with import-linter 2.17, grimp 3.20 (CPython 3.11, Linux). Python imports a folder of a package without __init__.py
# as well, and the forbidden import in it runs; the linter does not read such a folder, says "KEPT" and exits with 0,
# without a word about what it left out. With an empty __init__.py, which changes nothing for Python, the same contract is
# "BROKEN". Expected: modules that can be imported are read, or named as left out. Research code grows such folders
# (methods, scripts, plugins), and the direction of imports that continuous integration is said to hold does not hold
# there. Hold by a test that every folder of modules has an __init__.py.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv && . venv/bin/activate
pip install --quiet import-linter==2.17 grimp==3.20
mkdir -p study/data/readers study/models && touch study/__init__.py study/data/__init__.py study/models/__init__.py
echo "import study.models" >study/data/readers/table.py
cat >.importlinter <<'INI'
[importlinter]
root_package = study
[importlinter:contract:layers]
name = data knows no models
type = layers
layers =
    study.models
    study.data
INI
python -c 'import sys, study.data.readers.table; print("forbidden import runs:", "study.models" in sys.modules)' >runs
without=0; PYTHONPATH=. lint-imports --no-cache >without.out 2>without.err || without=$?
touch study/data/readers/__init__.py
with=0; PYTHONPATH=. lint-imports --no-cache >with.out 2>with.err || with=$?
python - "$without" "$with" <<'PY'
import sys
from pathlib import Path
text = {name: Path(name).read_text() for name in ("runs", "without.out", "without.err", "with.out")}
def of(name):
    return [line for line in text[name].splitlines() if line.startswith(("Analyzed", "data knows no models "))]
print(text["runs"].strip())
print("without __init__.py: exit status", sys.argv[1], of("without.out"), "stderr:", text["without.err"].split())
print("with an empty one:   exit status", sys.argv[2], of("with.out"))
same = (sys.argv[1:] == ["0", "1"] and "True" in text["runs"] and "table" not in text["without.out"]
        and not text["without.err"] and "data knows no models KEPT" in of("without.out")
        and "data knows no models BROKEN" in of("with.out") and "study.data.readers.table -> study.models" in text["with.out"])
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
