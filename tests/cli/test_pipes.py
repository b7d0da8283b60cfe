"""What is different where servers listen at pipes."""

from __future__ import annotations


def test_pipes_are_looked_at_by_name_and_not_listed(cli):
    found, missing = cli("doctor", "shop"), cli("doctor", "nowhere")

    assert (found.code, missing.code) == (0, 1)
    assert "server: interphone" in found.out
    assert "nobody listens there" in missing.out
    assert cli("list").code == 2
