"""A member is a file in its folder, a line in the folder's `__all__` and a mention in the docs."""

import re

import pytest

from scripts import docs_tables
from tests.members import INTERFACES, ROOT, classes, concrete, files, interface, load


def test_every_folder_has_members() -> None:
    assert {folder for folder, _ in files()} == set(INTERFACES)


@pytest.mark.parametrize(("folder", "name"), files())
def test_a_public_file_defines_a_member(folder: str, name: str) -> None:
    assert classes(folder, name), (
        f"{folder}/{name}.py defines no public subclass of {interface(folder, name).__name__}: "
        f"write one, or call the file _{name}.py if it only helps others"
    )


@pytest.mark.parametrize(("folder", "name"), files())
def test_a_member_is_exported(folder: str, name: str) -> None:
    package = load(folder)
    for cls in concrete(folder, name):
        assert cls.__name__ in package.__all__, f"export {cls.__name__} from {folder}/__init__.py"
        assert getattr(package, cls.__name__) is cls, (
            f"{folder}.{cls.__name__} is another thing than {folder}/{name}.py defines"
        )


@pytest.mark.parametrize(("folder", "name"), files())
def test_a_member_is_documented(folder: str, name: str) -> None:
    pages = "\n".join(
        docs_tables.on_page_markdown(page.read_text(encoding="utf-8"))
        for page in sorted((ROOT / "docs").rglob("*.md"))
    )
    for cls in concrete(folder, name):
        # `topk`, `topk(64)` and `what.topk` name it; a fenced block, or a place inside another
        # member's call, does not
        mention = re.compile(rf"(?<!`)`([\w.]+\.)?{re.escape(cls.__name__)}[`(]")
        assert mention.search(pages), (
            f"no page under docs/ mentions `{cls.__name__}`: docs/members.md is the place"
        )


@pytest.mark.parametrize("folder", INTERFACES)
def test_exports_are_sorted_and_there(folder: str) -> None:
    package = load(folder)

    def natural(export: str) -> list[str | int]:  # fp8 before fp16, as ruff's RUF022 sorts
        return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", export)]

    assert list(package.__all__) == sorted(package.__all__, key=natural)
    assert [export for export in package.__all__ if not hasattr(package, export)] == []
