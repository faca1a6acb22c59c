"""Let a wheel carry the C libraries that ``make capi`` has staged; else it is pure Python."""

import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

STAGED = Path(__file__).parent / "capi" / "build" / "prefix"


class BuildWithLibraries(build_py):
    """Copy the staged header, libraries and CMake files into the package."""

    def run(self):
        """Build the package, then add the libraries unless it is installed in place."""
        super().run()
        if STAGED.is_dir() and not self.editable_mode:
            package = Path(self.build_lib) / "bnnumba" / "_capi"
            for name in ("include", "lib"):
                shutil.rmtree(package / name, ignore_errors=True)
                # Wheels hold no links: both names of a library become files.
                shutil.copytree(STAGED / name, package / name, ignore=_ignore_versioned)


def _ignore_versioned(_directory, names):
    return [name for name in names if ".so." in name and name.count(".") > 2]


class PlatformDistribution(Distribution):
    """A distribution whose wheel is for one platform if it carries libraries."""

    def has_ext_modules(self):
        """Return whether there are libraries."""
        return STAGED.is_dir()


setup(cmdclass={"build_py": BuildWithLibraries}, distclass=PlatformDistribution)
