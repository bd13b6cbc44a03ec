"""Documentation as blocks: paragraphs and headings stay, code and layout go."""

from __future__ import annotations

from thinwire.data.corpus.markup import decode, html, pod, vim


def texts(blocks: object) -> list[str]:
    return [block.text.strip() for block in blocks]  # type: ignore[attr-defined]


def test_old_pages_are_windows_1252() -> None:
    assert decode("naïve".encode()) == "naïve"
    assert decode("naïve".encode("cp1252")) == "naïve"


def test_a_page_is_its_paragraphs() -> None:
    body = b"<h1>Title</h1><p>One <b>bold</b> word.</p><ul><li>An item</li></ul>"
    page = b"<html><body>" + body + b"</body></html>"
    found = texts(html(page))
    assert "One bold word." in found
    assert "An item" in found


def test_pod_loses_codes_and_examples() -> None:
    found = texts(
        pod(b"=head1 NAME\n\nUse B<this I<now>> and C<code>.\n\n    an example\n\nMore.\n")
    )
    assert "Use this now and code." in found
    assert not any("an example" in text for text in found)


def test_vims_examples_are_left_out() -> None:
    page = (
        b"<html><body><pre>A paragraph of help.\n\n\tan example\n\nAnother one.</pre></body></html>"
    )
    found = " ".join(texts(vim(page)))
    assert "A paragraph of help." in found
    assert "an example" not in found
