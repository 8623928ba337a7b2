"""A Python as on Windows, where there is no array_record; also in the processes that it starts:

PYTHONPATH=tests/without_array_record python -m pytest tests/data
"""

import importlib.abc
import importlib.machinery
import platform
import sys

ASKS_FOR_THE_PLATFORM = "grain._src.python.data_sources"  # before it imports array_record


class _OnWindows(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads that module, which sees Windows as its platform."""

    def find_spec(self, name, path, target=None):
        if name != ASKS_FOR_THE_PLATFORM:
            return None
        self._found = importlib.machinery.PathFinder.find_spec(name, path, target)
        return importlib.machinery.ModuleSpec(name, self, origin=self._found.origin)

    def exec_module(self, module):
        system, platform.system = platform.system, lambda: "Windows"
        try:
            self._found.loader.exec_module(module)
        finally:
            platform.system = system


sys.modules["array_record"] = None
sys.meta_path.insert(0, _OnWindows())
