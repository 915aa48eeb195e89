"""The page of a sweep: what it says, what it must not hold, and that it is rewritten as a whole."""

import re
from html.parser import HTMLParser

import pytest

from tests.builders import phema
from tests.sweeps import curve, lines

#: elements without an end.
VOID = {"meta", "br", "hr", "img", "link", "input"}
GIVEN = ("--no-sample", "--no-baselines", "--report", "page.html")


class Read(HTMLParser):
    """Reads a page: its text, its elements with what they have, and whether all of them end."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += f"{data}\n"

    def count(self, tag, kind=None):
        """How many elements there are of a kind."""
        classes = [(t, (a.get("class") or "").split()) for t, a in self.elements]
        return sum(t == tag and (kind is None or kind in c) for t, c in classes)


def test_the_page_says_what_was_found_and_how_to_make_it_again(ckpts, tmp_path):
    """The picture, a row and a command for each target; the command makes the same bytes."""
    command = f"case {{sigma_rel}} in 0.25) exit 3;; esac; {curve('u*u', 0.1)}"
    given = ("-s", "0.05,0.08,0.13,0.2,0.25", "--eval", command, *GIVEN)
    run = phema("sweep", ckpts, *given, cwd=tmp_path)
    assert run.code == 0, run.err
    page = Read((tmp_path / "page.html").read_text())
    assert page.count("circle", "point") == 4
    assert page.count("circle", "best") == 1
    assert page.count("tr") == 1 + 5
    for said in ("finished: 5 evaluations", "exit code 3", "gamma 9.45225", command, "written by"):
        assert said in page.text
    assert not [a for _, a in page.elements if a.get("http-equiv") == "refresh"]
    (again,) = re.findall(r"gamma 9\.45225 \(best\)\n(phema .*)\n", page.text)
    name = "again.safetensors"
    assert phema(*again.split()[1:], "--no-sample", "-o", name, cwd=tmp_path).code == 0
    assert (tmp_path / name).read_bytes() == (tmp_path / run.out.strip()).read_bytes()


def test_the_page_loads_and_runs_nothing(ckpts, tmp_path):
    """All that comes from outside is text in it, whatever it is."""
    evil = "echo '</code><script>alert(1)</script><img src=//x onerror=alert(1)>' {path} 1"
    key = ("--metric", r"(\d)$ <b>")
    out = "a<b>&\"'"
    run = phema("sweep", ckpts, "-s", "0.1", "--eval", evil, *GIVEN, "-o", out, cwd=tmp_path)
    assert run.code == 0, run.err
    text = (tmp_path / "page.html").read_text()
    page = Read(text)
    known = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "strong", "figure"}
    known |= {"div", "table", "thead", "tbody", "tr", "th", "td", "span", "pre", "code"}
    known |= {"dl", "dt", "dd", "svg", "rect", "path", "circle", "text"}
    assert {tag for tag, _ in page.elements} <= known
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {n for n in names if n.startswith("on") or n in {"src", "href", "style"}}
    assert "url(" not in text
    assert "@import" not in text
    assert "://" not in text
    assert evil in page.text
    assert f"Sweep of {out}" in page.text
    run = phema("sweep", ckpts, "-s", "0.1", "--eval", evil, *key, *GIVEN, "-o", "k", cwd=tmp_path)
    assert "<b>" not in (tmp_path / "page.html").read_text()


def test_the_page_is_written_after_each_evaluation(ckpts, tmp_path):
    """Each evaluation finds a whole page of those before it, which a browser reads again."""
    command = (
        "cp page.html {gamma}.html; grep -o 'running: [0-9]* of at most [0-9]*' page.html >> seen; "
        "echo {sigma_rel}"
    )
    given = ("-s", "0.1,0.13,0.2", "--eval", command, *GIVEN)
    assert phema("sweep", ckpts, *given, cwd=tmp_path).code == 0
    assert lines(tmp_path / "seen") == [f"running: {i} of at most 3" for i in range(3)]
    copies = list(tmp_path.glob("*[0-9].html"))
    assert len(copies) == 3
    for copy in copies:
        page = Read(copy.read_text())
        assert [a["content"] for _, a in page.elements if a.get("http-equiv") == "refresh"]
    assert not list(tmp_path.glob(".page*"))


def test_failures_alone_make_a_page_too(ckpts, tmp_path):
    """It says that there is no metric, and why."""
    given = ("-s", "0.1,0.2", "--eval", "exit 7 # {path}", *GIVEN)
    assert phema("sweep", ckpts, *given, cwd=tmp_path).code == 1
    page = Read((tmp_path / "page.html").read_text())
    assert "No evaluation gave a metric yet." in page.text
    assert page.text.count("exit code 7") == 2
    assert page.count("svg") == 0


@pytest.mark.parametrize(
    ("name", "message"), [("page.txt", "ends in .html"), ("no/page.html", "no such directory")]
)
def test_a_page_that_could_not_be_written_stops_the_sweep_at_once(ckpts, tmp_path, name, message):
    """Before an hour of evaluations is lost."""
    given = ("-s", "0.1", "--eval", "touch run; echo {path} 1", *GIVEN[:-1], name)
    run = phema("sweep", ckpts, *given, cwd=tmp_path)
    assert run.code in {2, 5}
    assert message in run.err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "sweep").exists()
