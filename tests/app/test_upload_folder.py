from __future__ import annotations

import os
import time
from pathlib import Path

from speech_image_retrieval.app import upload_folder
from speech_image_retrieval.app.upload_folder import UploadFolder


def test_what_is_old_is_deleted_and_nothing_else(tmp_path: Path):
    uploads = tmp_path / "uploads"
    old, halved, new = uploads / "a" / "old.wav", uploads / "tmphalf", uploads / "b" / "new.wav"
    for path in (old, halved, new):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound")
    aged = time.time() - 1000
    for path in (old, halved, new.parent):
        os.utime(path, (aged, aged))
    folder = UploadFolder(uploads)
    folder.sweep()
    assert [path for path in uploads.rglob("*") if path.is_file()] == [new]
    os.utime(old.parent, (aged, aged))
    folder.sweep()
    assert sorted(path.name for path in uploads.iterdir()) == ["b"]


def test_many_small_files_fill_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(upload_folder, "_MAX_BYTES", 200_000)
    folder = UploadFolder(tmp_path)
    for number in range(3):
        assert folder.begin()
        (tmp_path / str(number)).write_bytes(b"x")
        folder.sweep()
    assert not folder.begin()


def test_what_arrives_counts_before_it_is_measured_and_what_came_to_nothing_until_then(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(upload_folder, "_MAX_BYTES", 200_000)
    folder = UploadFolder(tmp_path)
    assert [folder.take(70_000) for _ in range(3)] == [True, True, False]
    folder.sweep()
    assert [folder.take(70_000) for _ in range(3)] == [True, True, False]


def test_only_paths_inside_are_held(tmp_path: Path):
    folder = UploadFolder(tmp_path / "uploads")
    folder.path.mkdir()
    (folder.path / "link").symlink_to(tmp_path)
    assert folder.holds(str(folder.path / "a" / "b.wav"))
    outside = [folder.path, folder.path / "..", folder.path / "link" / "secret", tmp_path / "uploads2" / "a"]
    for path in (*map(str, outside), "http://127.0.0.1/a", "a\0", "", None, 3, ["a"]):
        assert not folder.holds(path), path
