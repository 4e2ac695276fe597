"""What to install when a package is missing: flatlingo's extras, as its own metadata lists them."""

import re
from importlib.metadata import PackageNotFoundError, requires

from flatlingo.errors import FlatlingoError

IN_EXTRA = re.compile(r"""(?!flatlingo\b)([\w-]+)[^;]*;\s*extra == ["']([\w-]+)["']""")


def missing(error: ModuleNotFoundError) -> FlatlingoError | None:
    """The message for a package that an extra of flatlingo brings; None for any other.

    Args:
        error: of an import; its `name` is the module that is not there.
    """
    package = (error.name or "").partition(".")[0]
    try:
        listed = map(IN_EXTRA.match, requires("flatlingo") or ())
        extra = next((found[2] for found in listed if found and found[1].lower().replace("-", "_") == package), None)
    except PackageNotFoundError:
        return None
    return (
        FlatlingoError(f'this needs {package}, which is not installed: pip install "flatlingo[{extra}]"')
        if extra
        else None
    )
