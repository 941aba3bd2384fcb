"""Which file system a directory lies on; and that a network's is told of when a store opens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from statestore import open_store
from statestore.backends.sql import file
from statestore.backends.sql.mounts import file_system
from tests.places.small_disks import mounted_tmpfs

MOUNTS = r"""/dev/vda / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
host:/export /mnt/shared nfs4 rw,vers=4.2 0 0
/dev/vdb /mnt/shared/local xfs rw 0 0
//host/share /mnt/a\040b\134c cifs rw 0 0
tmpfs /mnt/over tmpfs rw 0 0
host:/export /mnt/over nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/var/lib/states", "ext4"),
        ("/mnt/shared", "nfs4"),
        ("/mnt/shared/states/deeper", "nfs4"),
        ("/mnt/shared/local/states", "xfs"),
        ("/mnt/sharedness", "ext4"),
        ("/mnt/a b\\c/states", "cifs"),
        ("/mnt/over/states", "nfs"),
    ],
)
def test_the_nearest_mount_counts(directory: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert file_system(Path(directory), tmp_path / "mounts") == kind


def test_where_it_cannot_be_told(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("\n/dev\n")
    assert file_system(tmp_path, tmp_path / "mounts") == ""
    assert file_system(tmp_path, tmp_path / "none") == ""
    assert file_system(Path("/a\0b")) == file_system(Path("/\ud800")) == ""


def test_a_real_one(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", "1m"):
        (tmp_path / "link").symlink_to(tmp_path / "disk")
        assert file_system(tmp_path / "link" / "not yet there") == "tmpfs"


def test_a_store_on_a_networks_file_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_store(str(tmp_path / "s")).close()
    assert not caplog.text
    line = f"host:/export {os.fspath(tmp_path)} nfs4 rw 0 0\n"
    (tmp_path / "mounts").write_text(line)
    monkeypatch.setattr(file, "file_system", lambda root: file_system(root, tmp_path / "mounts"))
    open_store(str(tmp_path / "s")).close()
    assert f"{tmp_path / 's'} is on a network's file system (nfs4)" in caplog.text
    assert "postgresql:// or redis://" in caplog.text
