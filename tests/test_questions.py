"""Every question on docs/questions.md is answered by a section that exists."""

from __future__ import annotations

import re

from tests.members import ROOT

DOCS = ROOT / "docs"
ROW = re.compile(r"^\| ([^|]+\?(?: [^|]*)?) \| ([^|]+) \|$", re.MULTILINE)
LINK = re.compile(r"\]\(([\w/]+\.md)(?:#([\w-]+))?\)")


def anchors(markdown: str) -> set[str]:
    """Return the anchors of a page's headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.M)
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
        for heading in headings
    }


def unanswered(page: str) -> list[str]:
    """Return each question whose answer has no link, or one that leads nowhere."""
    problems = []
    for question, answer in ROW.findall(page):
        links = LINK.findall(answer)
        if not links:
            problems.append(f"{question} has no link")
        for target, anchor in links:
            path = DOCS / target
            if not path.is_file():
                problems.append(f"{question} leads to {target}, which does not exist")
            elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
                problems.append(f"{question} leads to {target}#{anchor}, which does not exist")
    return problems


def test_at_least_thirty_questions_are_asked_and_each_is_answered() -> None:
    page = (DOCS / "questions.md").read_text(encoding="utf-8")
    assert len(ROW.findall(page)) >= 30
    assert unanswered(page) == []


def test_an_answer_without_a_section_is_a_problem() -> None:
    page = (
        "| Why? | Because. |\n"
        "| How? | So: [there](nowhere.md). |\n"
        "| When? | Now: [then](loops.md#no-such-section). |\n"
        "| What? | This: [here](loops.md#checkpoints). |\n"
    )
    assert [problem.split("?")[0] for problem in unanswered(page)] == ["Why", "How", "When"]
