"""Reading what the kernel says in its files."""

from pathlib import Path

from thinwire.planner.machine.finding import read


def test_a_file_is_read_without_its_line_end_and_none_where_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "tcp_rmem"
    file.write_text("4096 131072\n")
    assert read(str(file)) == "4096 131072"
    assert read(str(tmp_path / "none")) is None
