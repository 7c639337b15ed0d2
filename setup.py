"""Puts the root scripts into the wheel as ``aidet.scripts``, where the console command ``aidet`` finds them.

They stay at the root of the repository, where the project's users look for them; installed under their own names
(``train``, ``app`` ...) they would take common names from other packages. All else is in pyproject.toml.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SCRIPTS = ("train", "infer", "evaluate", "export", "app")


class BuildWithScripts(build_py):
    """The usual build, then one module for each root script."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # an editable install runs them where they are
        target = Path(self.build_lib) / "aidet" / "scripts"
        self.mkpath(str(target))
        (target / "__init__.py").write_text('"""The root scripts of the repository, for the command aidet."""\n')
        for name in SCRIPTS:
            self.copy_file(str(ROOT / f"{name}.py"), str(target / f"{name}.py"))


setup(cmdclass={"build_py": BuildWithScripts})
