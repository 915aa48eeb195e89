"""The pages as a site."""

import re
import subprocess
import sys

import pytest

import phema_cli
from phema_cli.errors import PhemaError
from tests.pages import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, as ``make docs`` builds it."""
    made = tmp_path_factory.mktemp("site")
    (recipe,) = re.findall(
        r"python (-m sphinx .*) docs site$", (ROOT / "Makefile").read_text(), re.M
    )
    subprocess.run([sys.executable, *recipe.split(), "docs", made], cwd=ROOT, check=True)
    return made


def test_the_site_is_built_without_a_warning(site):
    """Every page is reached, every link and anchor leads somewhere, pictures come along."""
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in site.glob("*.html")}
    front = (site / "index.html").read_text()
    for page in pages:
        assert f'href="{page}.html"' in front or page == "index"
    for target in re.findall(r'(?:href|src)="(?!https?:|#|mailto:)([^"#?]+)', front):
        assert (site / target).exists(), target


def test_python_names_are_described(site):
    """All that phema_cli exports has its entry, with its parameters, and so have the errors."""
    page = (site / "api.html").read_text()
    described = set(re.findall(r'<dt class="sig sig-object py" id="([\w.]+)"', page))
    names = {n for n in phema_cli.__all__ if not n.startswith("_")}
    assert names <= {name.rpartition(".")[2] for name in described}
    assert {f"phema_cli.errors.{e.__name__}" for e in PhemaError.__subclasses__()} <= described
    assert "trust_tags" in page


def test_the_site_loads_nothing_from_elsewhere(site):
    """Fonts, styles, scripts and pictures are the site's own."""
    loaded = r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="(?:https?:)?//[^"]*"'
    for page in site.glob("*.html"):
        assert not re.findall(loaded, page.read_text()), page.name
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style


def test_links_of_the_readme_are_rewritten(site):
    """The README's links to docs/ lead to pages of the site."""
    front = (site / "index.html").read_text()
    assert 'href="formats.html"' in front
    assert 'href="docs/' not in front
