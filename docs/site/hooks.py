"""What mkdocs reads: pages of the whole repository under their own paths, so that a link leads to the same place here
and on a code host, and nothing is kept twice. The page of all methods is written from the files of the zoos.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#]+)")
BUILT = "build"
"""Where `make docs` writes pages that it makes of notebooks, under the path of the notebook."""
METHODS = "docs/site/methods.md"
SITES = {
    "frameselectors": "Before encoding",
    "compressors": "Before the language model",
    "layercompressors": "Between its layers",
    "kvcompressors": "In its cache",
    "backbones": "Backbones",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files; pages of the top folder, of docs/ and of notebooks; what these link to; all methods."""
    root = Path(config.config_file_path).parent
    for file in [each for each in files if each.src_dir == config.docs_dir]:
        files.remove(file)
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("docs/**/*.css")]
    linked = [page.parent / link for page in pages for link in LINK.findall(page.read_text())]
    found = {path.resolve(): root for path in [*pages, *linked] if path.is_file() and path.suffix != ".ipynb"}
    found |= {path: root / BUILT for path in root.glob(f"{BUILT}/examples/**/*") if path.is_file()}
    for path, base in found.items():
        name = path.relative_to(base).as_posix()
        files.append(File(name, str(base), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, METHODS, content=methods(root / "langdc")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """A page's text, with links to notebooks turned to the pages that are made of them, and without the backslash that
    code hosts, unlike mkdocs, want before a bar in code in a table.
    """
    return re.sub(r"`[^`\n]+`", lambda code: code[0].replace(r"\|", "|"), markdown.replace(".ipynb)", ".md)"))


def methods(package: Path) -> str:
    """The page of all members of the zoos, each with what its docstring says and where it was published."""
    text = "# All methods\n\nTheir rules, settings and sources. `langdc compressors` lists them with what they need.\n"
    for zoo, title in SITES.items():
        text += f"\n## {title}\n"
        for file in sorted((package / zoo).glob("*.py")):
            for name, kind, paper in members(zoo, file):
                options = f"{{heading: {name}, toc_label: {name}, members: false, show_bases: false}}"
                text += f"\n::: langdc.{zoo}.{file.stem}.{kind}\n    options: {options}\n\n"
                text += f"Published: {paper}\n" if paper else ""
    return text


def members(zoo: str, file: Path) -> Iterator[tuple[str, str, str]]:
    """Name, class and paper of each member that a file registers."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            said = [ast.unparse(line.value) for line in node.body if ast.unparse(line).startswith("paper = ")]
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{zoo}.register":
                    yield ast.literal_eval(call.args[0]), node.name, ast.literal_eval(said[0]) if said else ""
