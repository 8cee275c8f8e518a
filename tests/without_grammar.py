"""Imported first, as tests/conftest.py does it: the validator of notebooks builds no grammar, for two seconds."""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
