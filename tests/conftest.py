"""What several test files share."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def real_data():
    "A function: folder of real data by its name below the data folder, or a skip that says what was looked for."
    def find(name: str) -> Path:
        places = [ROOT / os.environ["SIEVE_DATA"]] if "SIEVE_DATA" in os.environ else [ROOT / "data", ROOT.parent / "shared" / "data"]
        for place in places:
            if (place / name).is_dir(): return place / name
        pytest.skip(f"no real data: {name} is in none of {', '.join(map(str, places))}")
    return find
