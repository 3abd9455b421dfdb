"""A file system of its own for a disturbed run, so that its disk can be filled."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


class Place:
    """Where a disturbed run lives: a file system of its own if it may be mounted."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.clear()
        folder.mkdir(parents=True)
        self.mounted = _mount(folder, size)

    def clear(self) -> None:
        """Remove it, and what an earlier harness left."""
        if self.folder.is_mount():
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _mount(folder: Path, size: int) -> bool:
    if os.geteuid() != 0 or not shutil.which("mount"):
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "skyvec-chaos", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
