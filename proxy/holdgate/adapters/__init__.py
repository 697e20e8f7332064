"""What touches the world: sockets, files, processes, databases, mitmproxy.

`import mitmproxy.addons` imports all of mitmproxy's addons, with flask, ldap3 and more: a fifth of a start,
13 MiB of every process, and what forwards by itself (engine.py). Three of its modules are used. So in a
process that imports this first, what is found under its name is the folder, without its `__init__`.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path


def _leave_out_default_addons() -> None:
    name = "mitmproxy.addons"
    mitmproxy = find_spec("mitmproxy")
    if name in sys.modules or mitmproxy is None or mitmproxy.origin is None:
        return
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(Path(mitmproxy.origin).parent / "addons")]
    sys.modules[name] = module_from_spec(spec)


_leave_out_default_addons()
