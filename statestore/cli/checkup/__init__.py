"""What `statestore doctor` looks at, in every place by itself."""

from __future__ import annotations

from statestore.cli.checkup.finding import Finding, Level
from statestore.cli.checkup.place import examine
from statestore.cli.checkup.settings import settings_findings

__all__ = ["Finding", "Level", "examine", "settings_findings"]
