"""What a run learns, one file per objective; every file in this folder is loaded.

Third parties add theirs through the entry point group `langdc.objectives`.
"""

import importlib
import pkgutil

from langdc.interfaces import Objective
from langdc.registry import Registry

objectives: Registry[Objective] = Registry("objective")

for _member in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_member.name}")
