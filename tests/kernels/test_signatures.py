"""What ctypes is told of the kernels is what their sources say."""

import re
from ctypes import c_float, c_int, c_int64, c_uint32, c_void_p

import pytest

from thinwire.kernels.native import FOLDER
from thinwire.kernels.signatures import FUNCTIONS, VERSION

SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.cpp")))
EXPORTED = {
    name: (result, [argument.strip() for argument in arguments.split(",")])
    for result, name, arguments in re.findall(r"^EXPORT (\w+) (\w+)\(([^)]*)\)", SOURCE, re.M)
}
PLAIN = {"int64_t": c_int64, "uint32_t": c_uint32, "float": c_float, "int": c_int, "void": None}


def type_of(argument: str) -> object:
    """Return ctypes' type of an argument as C++ declares it."""
    return c_void_p if "*" in argument else PLAIN[argument.removeprefix("const ").split()[0]]


def test_all_exported_functions_are_listed() -> None:
    assert EXPORTED.keys() - {"level", "version"} == FUNCTIONS.keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_and_result_are_those_of_the_source(name: str) -> None:
    result, arguments = EXPORTED[name]
    assert FUNCTIONS[name] == (PLAIN[result], [type_of(each) for each in arguments])


def test_the_version_is_that_of_the_source() -> None:
    assert f"EXPORT int version() {{ return {VERSION}; }}" in SOURCE
