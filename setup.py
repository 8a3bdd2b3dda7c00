"""What pyproject.toml cannot say: all packages that are found, and one whose folder lies elsewhere."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["langdc", "langdc.*"]), "langdc.configs"])
