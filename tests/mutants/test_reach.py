from tests.mutants.reach import Reach

MODULE = """
LIMIT = 9
_STATEMENT = f"{LIMIT}"
_TWICE: int = LIMIT * 2
UNUSED = 1

@decorated
def one():
    return _STATEMENT

async def two():
    def inner():
        return _TWICE

class Kind:
    MEMBER = 1

def three(kind: Kind): ...
"""


def reached(line: str) -> set[str] | None:
    functions = Reach(MODULE).functions(MODULE.splitlines().index(line) + 1)
    return None if functions is None else {*functions}


def test_a_line_reaches_its_function_and_a_constant_whoever_names_it() -> None:
    assert reached("@decorated") == {"one"}
    assert reached("        return _TWICE") == {"two"}
    assert reached('_STATEMENT = f"{LIMIT}"') == {"one"}
    assert reached("LIMIT = 9") == {"one", "two"}
    assert reached("    MEMBER = 1") == {"three"}


def test_where_nobody_names_it_nothing_is_known() -> None:
    assert reached("UNUSED = 1") is None
    assert reached("") is None
