"""Three things that pyproject.toml cannot say; all else is there.

The wheel installs one top-level package, ``aidet``, so that it takes no common name from another project:

* the folder ``convert`` at the root of the repository becomes ``aidet.convert``;
* the root scripts (``train``, ``app`` ...) become ``aidet.scripts``, where the console command ``aidet`` finds them;
* the default detector, the localizer and the recipes of ``mindcv_cfg`` become data in ``aidet/shipped``.

All stay at the root of the repository, where the project's users look for them.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SCRIPTS = ("train", "infer", "evaluate", "export", "app")
SHIPPED = ("ckpt/aidet_default.*", "ckpt/aidet_partial.*", "mindcv_cfg/**/*.yaml")


class BuildWhole(build_py):
    """The usual build, then one module for each root script, and the shipped files."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # an editable install runs them where they are
        target = Path(self.build_lib) / "aidet" / "scripts"
        self.mkpath(str(target))
        (target / "__init__.py").write_text('"""The root scripts of the repository, for the command aidet."""\n')
        for name in SCRIPTS:
            self.copy_file(str(ROOT / f"{name}.py"), str(target / f"{name}.py"))
        shipped = Path(self.build_lib) / "aidet" / "shipped"
        for path in (p for pattern in SHIPPED for p in sorted(ROOT.glob(pattern))):
            place = shipped / path.relative_to(ROOT).as_posix().replace("ckpt/", "", 1)
            self.mkpath(str(place.parent))
            self.copy_file(str(path), str(place))


# Every folder with an __init__.py is found, new ones too.
product = find_packages(str(ROOT), include=("aidet", "aidet.*"))
converter = find_packages(str(ROOT), include=("convert", "convert.*"))
setup(
    packages=[*product, *(f"aidet.{name}" for name in converter)],
    package_dir={"aidet.convert": "convert"},
    cmdclass={"build_py": BuildWhole},
)
