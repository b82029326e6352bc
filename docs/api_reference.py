"""A Sphinx extension: the pages of the API reference, made from the modules' `__all__`.

Each public module has a page with all of its public names. A name that several modules have is on the first one's page,
under the shortest spelling: `densezoo.Conv`, not `densezoo.blocks.Conv`. The build fails if a name is on no page.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import signature, stringify_signature

import densezoo

# In the order of the table of contents. A package of densezoo that is not here is an error.
TITLES = {
    "densezoo.encoders": "Encoders",
    "densezoo.decoders": "Decoders",
    "densezoo.heads": "Heads",
    "densezoo.models": "Models",
    "densezoo.blocks": "Blocks, skips, upsamplers and norms",
    "densezoo.ops": "Operations",
    "densezoo.losses": "Losses",
    "densezoo.metrics": "Metrics",
    "densezoo.tasks": "Tasks",
    "densezoo.diffusion": "Diffusion",
    "densezoo.train": "Training",
    "densezoo.data": "Data",
    "densezoo.data.fields": "Fields of samples",
    "densezoo.data.transforms": "Augmentation",
    "densezoo.weights": "Weights",
    "densezoo.nnx": "Flax NNX",
    "densezoo.viz": "Pictures",
    "densezoo.inspect": "Inspection",
    "densezoo.types": "Types",
    "densezoo": "The zoo, inference and files",
    # All of their public names are those of densezoo, so that they get no page.
    "densezoo.predictor": "Prediction",
    "densezoo.tiling": "Prediction by tiles",
    "densezoo.onnx": "Conversion to ONNX",
}


def public_names(module: ModuleType) -> list[str]:
    """The names in `__all__`, or else the classes, functions and tables of densezoo that the module has."""
    if (names := getattr(module, "__all__", None)) is not None:
        return list(names)
    package = f"{densezoo.__name__}." if hasattr(module, "__path__") else module.__name__

    def is_public(name: str) -> bool:
        value = getattr(module, name)
        own = str(getattr(value, "__module__", "")).startswith(package) or (isinstance(value, dict) and name.isupper())
        return own and not name.startswith("_")

    return [name for name in dir(module) if is_public(name)]


def documented(titles: dict[str, str]) -> dict[str, list[str]]:
    """For each module the names on its page, each as the shortest path that users can write.

    Raises:
        ExtensionError: a public name is on no page, or a package has none.
    """
    pages: dict[str, list[str]] = {}
    seen: set[int] = set()
    packages = [name for _, name, is_package in pkgutil.walk_packages(densezoo.__path__, "densezoo.") if is_package]
    for name in {*packages, *titles}:
        if name not in titles and "._" not in name:
            raise ExtensionError(
                f"the package {name} has no page in the API reference: add it to docs/api_reference.py"
            )
    for module_name in titles:
        module = importlib.import_module(module_name)
        pages[module_name] = []
        for name in public_names(module):
            value = getattr(module, name)
            if isinstance(value, ModuleType):
                if value.__name__ not in titles:
                    raise ExtensionError(f"{value.__name__} has no page: add it to TITLES in docs/api_reference.py")
                continue
            # Strings and numbers are shared between names; what else there is, is documented once.
            if id(value) in seen and (callable(value) or isinstance(value, dict)):
                continue
            seen.add(id(value))
            short = getattr(densezoo, name, None) is value
            pages[module_name].append(f"densezoo.{name}" if short else f"{module_name}.{name}")
    return pages


def write_pages(app: Sphinx) -> None:
    """Writes a page for each module into api/, before Sphinx looks for pages."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    pages = documented(TITLES)
    for module, names in pages.items():
        if names:
            _write(folder / f"{module}.rst", _page(module, names))
    listed = [module for module, names in pages.items() if names]
    toctree = "\n".join(f"   {TITLES[module]} <{module}>" for module in [listed[-1], *listed[:-1]])
    _write(folder / "index.rst", f"API reference\n=============\n\n{_INTRODUCTION}\n\n.. toctree::\n\n{toctree}\n")


_INTRODUCTION = """Every public name. Those written ``densezoo.name`` are ``dz.name`` after ``import densezoo as dz``.

Arrays are annotated with their shapes: ``Float[Array, "b h w c"]`` is a batch of maps, NHWC. Flax modules have their
fields as arguments, and a line that says how they are called."""


def _page(module: str, names: list[str]) -> str:
    title = TITLES[module]
    parts = [title, "=" * len(title), ""]
    if module != "densezoo":
        parts += [f".. automodule:: {module}", "   :no-members:", "   :no-index:", ""]
    else:  # What users call comes before what it returns.
        names = sorted(names, key=lambda name: not inspect.isroutine(getattr(densezoo, name.removeprefix("densezoo."))))
    for name in names:
        parent, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(parent), last)
        kind = "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "data"
        kind = "exception" if kind == "class" and issubclass(value, BaseException) else kind
        parts += [f".. auto{kind}:: {name}", ""]
        if kind == "data":
            comment = (f"   {line}".rstrip() for line in _comment(last, value))
            parts[-2:] = [f".. py:data:: {last}", f"   :module: {parent}", "", *comment]
    return "\n".join(parts)


def _comment(name: str, value: Any) -> list[str]:
    """The string below an assignment, in the module that makes it."""
    for module in [name for name in sys.modules if name.startswith("densezoo.")]:
        if getattr(sys.modules[module], name, None) is value:
            found = ModuleAnalyzer.for_module(module).find_attr_docs()
            if ("", name) in found:
                return found["", name]
    raise ExtensionError(f"{name} is public: say what it is, in a string below its assignment")


def _write(path: Path, text: str) -> None:
    """Leaves a file that is up to date alone, so that Sphinx does not read it again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def check_names(app: Sphinx, env: Any) -> None:
    """Raises an ExtensionError if a public name is on no page."""
    found = env.get_domain("py").objects
    missing = [name for names in documented(TITLES).values() for name in names if name not in found]
    if missing:
        raise ExtensionError(f"public names without an entry in the API reference: {', '.join(missing)}")


def short_signature(app: Sphinx, what: str, name: str, value: Any, options: Any, arguments: Any, returns: Any) -> Any:
    """For dataclasses and modules: their fields with short defaults, without Flax's `parent` and `name`."""
    if what not in ("class", "exception") or not dataclasses.is_dataclass(value):
        return None
    fields = [field for field in dataclasses.fields(value) if field.init]
    if issubclass(value, nn.Module):
        fields = [field for field in fields if field.name not in ("parent", "name")]
    return f"({', '.join(field.name + _default(field) for field in fields)})", None


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"={_name_of(field.default)}"
    return "" if field.default_factory is dataclasses.MISSING else "=..."


def _name_of(value: Any) -> str:
    if isinstance(value, functools.partial):
        keywords = [f"{key}={_name_of(each)}" for key, each in value.keywords.items()]
        return f"partial({', '.join([_name_of(value.func), *map(_name_of, value.args), *keywords])})"
    name = getattr(value, "__name__", "")
    if name == "<lambda>" or (not name and " at 0x" in repr(value)):
        return "..."
    return name or repr(value)


def plain_text(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Escapes stars and bars outside of backticks: docstrings are plain text with code in backticks."""
    in_example = False
    for index, line in enumerate(lines):
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if not in_example:
            words = re.split("(`[^`]*`)", line)
            words[::2] = [re.sub(r"([*|])", r"\\\1", each) for each in words[::2]]
            lines[index] = "".join(words)


def call_of_modules(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Adds to a Flax module, after its first paragraph, how it is called, with the shapes."""
    if what == "class" and inspect.isclass(value) and issubclass(value, nn.Module) and "__call__" in dir(value):
        call = stringify_signature(signature(value.__call__, bound_method=True), unqualified_typehints=True)
        call = re.sub(r"~?(?:[A-Za-z_]\w*\.)+", "", call)  # names without their modules
        end = next((index for index, line in enumerate(lines) if not line.strip()), len(lines))
        lines[end:end] = ["", f"Called as ``module{call}``.", ""]


def skip_fields(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Lists only the methods and properties of a class, because its docstring documents the fields."""
    is_field = what == "class" and not (inspect.isroutine(value) or isinstance(value, property))
    return True if is_field else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("env-check-consistency", check_names)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", call_of_modules)
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
