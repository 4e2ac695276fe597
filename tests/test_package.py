"""The public names."""

import subprocess
import sys

import pytest

import flatlingo


@pytest.mark.parametrize("name", flatlingo.__all__)
def test_a_public_name_is_there_and_documented(name):
    assert getattr(flatlingo, name).__doc__


def test_importing_the_package_does_not_load_torch():
    code = "import sys, flatlingo; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fischer_trace'"):
        _ = flatlingo.fischer_trace
