"""Which versions the documentation site offers."""

from __future__ import annotations

from site_versions import listed, releases


def test_releases_are_ordered_by_number_and_other_tags_are_none() -> None:
    tags = ["v0.9.0", "v0.10.0", "v1.0.0rc1", "nightly", "0.3.0", "v0.10.1"]
    assert releases(tags) == ["0.10.1", "0.10.0", "0.9.0"]


def test_the_newest_release_is_the_latest() -> None:
    assert listed(["0.2.0", "0.1.0"]) == [
        {"version": "dev", "title": "dev", "aliases": []},
        {"version": "0.2.0", "title": "0.2.0", "aliases": ["latest"]},
        {"version": "0.1.0", "title": "0.1.0", "aliases": []},
    ]
    assert listed([]) == [{"version": "dev", "title": "dev", "aliases": []}]
