"""What a plain install brings along."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_carries_studies_spaces_types_and_the_reports_page(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("studies", "search_spaces"):
        assert {f"hpo/{folder}/{path.name}" for path in (ROOT / folder).glob("*.yaml")} <= files
    source = [path for path in (ROOT / "hpo").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.suffix for path in source} >= {".py", ".html", ".css", ".js"}
    assert {str(path.relative_to(ROOT)) for path in source} <= files
    assert "hpo/py.typed" in files
    assert not any(name.startswith("tests") for name in files)


def test_an_installed_wheel_finds_its_studies_and_the_reports_page(tmp_path):
    """From a folder without the checkout, with only the wheel on the path."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import hpo.config.study_spec as c, hpo.analysis.html_page as p\n"
        "assert all(p.part(name) for name in ('report.html', 'report.css', 'report_tables.js', 'report_plots.js'))\n"
        "print(c.load(c.find('quickstart', 'studies')).folder)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "site", check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == tmp_path / "site" / "hpo" / "studies"
