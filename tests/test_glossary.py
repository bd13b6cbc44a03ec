"""Names, docstrings, messages and pages use the words of the field (scripts/glossary.py)."""

import pytest

from scripts.glossary import by_file, everything, page_problems, source_problems


def test_files_use_the_words_of_the_field() -> None:
    problems = [f"{path}: {lines[0]}" for path, lines in by_file(everything()).items()]
    assert problems == [], f"{len(problems)} files; each with its first line"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("def f(x):\n    rows_told = x\n", 2),
        ("class Unsaid: ...\n", 1),
        ("def f(seat): ...\n", 1),
        ("f(share=1)\n", 1),
        ("x.heard = 1\n", 1),
        ("import a as told\n", 1),
        ('"""What a rank is told."""\n', 1),
        ("x = 1  # drawn by lot\n", 1),
        ('x = f"{x}: a whole number goes here"\n', 1),
    ],
)
def test_an_old_word_is_a_problem(source: str, line: int) -> None:
    assert [problem.partition(",")[0] for problem in source_problems(source)] == [f"line {line}"]


@pytest.mark.parametrize(
    "source",
    [
        "def sayings_of(x): ...\n",
        "x = placed.share_memory_()\n",
        "x = torch.nn.functional.linear(x, y)\n",
        "size = file.tell()\n",
        '"""See `told` of version 0.1, and the allotted slots."""\n',
        "raise ModuleNotFoundError('told')\n",
    ],
)
def test_other_words_are_fine(source: str) -> None:
    assert source_problems(source) == []


def test_code_on_a_page_is_not_prose() -> None:
    assert page_problems("Run it:\n```python\ntold = 1\n```\nand `told`.\n") == []
    assert page_problems("One\n```text\nx\n```\nWhat a rank is told.\n") != []
    assert page_problems("Fine.\n\nIt is told.\n")[0].startswith("line 3")
