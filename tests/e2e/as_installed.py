"""``python -m tests.e2e.as_installed NAME ARGUMENTS...``: a program as its installed script starts it.

The function is read from pyproject.toml, so that tests run the entry points of an installation, also without one.
"""

import importlib
import sys
import tomllib

from tests.servers import ROOT

if __name__ == "__main__":
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[sys.argv.pop(1)].partition(":")
    getattr(importlib.import_module(module), function)()
