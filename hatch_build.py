"""Compile the hot modules with mypyc where that is possible; without it the wheel is pure.

The compiled modules are the sources, compiled: nothing is written twice. Both lie in the wheel,
and `interphone.accelerator` says which are imported. INTERPHONE_COMPILE decides while building:

    auto    compile where a C compiler and Python's headers are found; if it fails, say so and go on
    1       compile, or fail
    0       do not
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What every message passes on its way, and no user's code inherits from. Nothing that awaits what
# a handler does: the coroutines of mypyc lose the traceback of what is raised in them. Nor may a
# name be bound by two `except` clauses of one function, whose types would be confused
# (tests/test_accelerator.py looks).
COMPILED = [
    "protocol/credit.py",
    "protocol/deliveries.py",
    "protocol/dialects.py",
    "protocol/heartbeat.py",
    "protocol/payload.py",
    "protocol/questions.py",
    "protocol/session.py",
    "protocol/streams.py",
    "protocol/wire.py",
    "awake.py",
    "protocol/allowance.py",
    "protocol/topics.py",
    "backlog.py",
    "connection.py",
    "hearing.py",
    "deadlines.py",
    "asker.py",
    "prompt.py",
    "methods.py",
    "lanes.py",
    "traffic.py",
]
NEEDS = ["mypy>=1.18", "setuptools>=70"]
GROUP = "interphone"  # the library that holds them all is `interphone__mypyc`

SETUP = """\
import sys
from setuptools import setup
from mypyc.build import mypycify
target, *sources = sys.argv[1:]
options = ["--config-file", target + "/mypy.ini", "--cache-dir", target + "/mypy"]
modules = mypycify(options + sources, opt_level="2", target_dir=target + "/c", group_name={group!r})
setup(
    name="interphone",
    packages=["interphone"],
    package_dir={{"": "src"}},
    ext_modules=modules,
    script_args=["--quiet", "build_ext", "--build-lib", target + "/lib", "--build-temp", target],
)
"""


# Types are checked by `make types`. msgspec must be unknown here: its stubs say that `Raw` is a
# kind of bytes, which it is not, and compiled code would believe them.
MYPY = """\
[mypy]
python_version = {version}
ignore_missing_imports = true
disable_error_code = call-arg
[mypy-msgspec.*]
follow_imports = skip
follow_imports_for_stubs = true
"""


class CompileHook(BuildHookInterface[Any]):
    """The build hook that hatchling finds in this file."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What building needs beyond hatchling."""
        return NEEDS if wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the compiled modules to a wheel; an editable one must follow its sources."""
        if self.target_name != "wheel" or version == "editable" or not wanted():
            return
        self._target = tempfile.TemporaryDirectory(prefix="interphone-build-")
        target = Path(self._target.name)
        source = Path(self.root, "src", "interphone")
        sources = [str(source.joinpath(name).relative_to(self.root)) for name in COMPILED]
        version = ".".join(map(str, sys.version_info[:2]))
        (target / "mypy.ini").write_text(MYPY.format(version=version))
        command = [sys.executable, "-c", SETUP.format(group=GROUP), str(target), *sources]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        if done.returncode:
            if os.environ.get("INTERPHONE_COMPILE") == "1":
                raise RuntimeError(f"mypyc failed:\n{done.stdout}{done.stderr}")
            self.app.display_warning("not compiled, so it will be slower:")
            self.app.display_warning("\n".join((done.stdout + done.stderr).splitlines()[-5:]))
            return
        library = target / "lib"
        for file in library.rglob("*"):
            if file.is_file():
                build_data["force_include"][str(file)] = str(file.relative_to(library))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def wanted() -> bool:
    """Whether to compile: as it is asked for, or if it looks possible."""
    asked = os.environ.get("INTERPHONE_COMPILE", "auto")
    if asked != "auto":
        return asked == "1"
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False  # without the GIL importing such a module would turn it on again
    compiler = (sysconfig.get_config_var("CC") or "cl").split()[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(compiler) is not None and headers.is_file()
